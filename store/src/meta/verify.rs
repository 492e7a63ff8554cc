//! Whether the tables agree with themselves and each other. Reads everything; changes nothing.

use std::collections::HashMap;

use super::Meta;
use super::audit::Findings;
use super::counters::{COUNTERS_KEY, Counters};
use super::reader::Reader;
use super::rows::Shelf;
use super::shelf;
use super::sql::{At, number};
use crate::error::Result;
use crate::ids::{BlockId, BlockKey};

/// Findings listed of each kind.
const FINDINGS_MAX: usize = 20;

/// What must hold, as the query of what breaks it: (what a row of it says, query). Rows are up to three numbers, put
/// where the text has `#`.
const RULES: &[(&str, &str)] = &[
    (
        "a name in directory # stands for inode #, which does not exist or is of another kind",
        "SELECT d.parent, d.ino FROM dentries d LEFT JOIN inodes i ON i.ino = d.ino WHERE i.ino IS NULL OR i.kind <> d.kind",
    ),
    (
        "a name of inode # is in inode #, which is no directory",
        "SELECT d.ino, d.parent FROM dentries d LEFT JOIN inodes i ON i.ino = d.parent \
         WHERE i.ino IS NULL OR i.kind <> 2 OR i.nlink = 0",
    ),
    (
        "inode # says # names, it has #",
        "SELECT i.ino, i.nlink, coalesce(n.names, 0) FROM inodes i \
         LEFT JOIN (SELECT ino, count(*) AS names FROM dentries GROUP BY ino) n ON n.ino = i.ino \
         WHERE i.kind <> 2 AND i.nlink <> coalesce(n.names, 0)",
    ),
    (
        "directory # says # links, it has 2 and # subdirectories",
        "SELECT i.ino, i.nlink, coalesce(n.below, 0) FROM inodes i \
         LEFT JOIN (SELECT parent, count(*) AS below FROM dentries WHERE kind = 2 GROUP BY parent) n ON n.parent = i.ino \
         WHERE i.kind = 2 AND i.nlink <> 0 AND i.nlink <> 2 + coalesce(n.below, 0)",
    ),
    (
        "directory # says its parent is #, it has # names there",
        "SELECT i.ino, i.parent, (SELECT count(*) FROM dentries d WHERE d.parent = i.parent AND d.ino = i.ino) AS names \
         FROM inodes i WHERE i.kind = 2 AND i.nlink <> 0 AND i.ino <> 1 AND i.ino NOT IN \
         (SELECT d.ino FROM dentries d WHERE d.kind = 2 AND d.ino = i.ino AND d.parent = i.parent)",
    ),
    (
        "file # says # bytes allocated, its extents take #",
        "SELECT i.ino, i.allocated, coalesce(e.extents, 0) << i.chunk_bits FROM inodes i \
         LEFT JOIN (SELECT data, count(*) AS extents FROM \
         (SELECT data, chunk FROM extents UNION SELECT data, chunk FROM patches) GROUP BY data) e ON e.data = i.data \
         WHERE i.kind = 1 AND i.allocated <> coalesce(e.extents, 0) << i.chunk_bits",
    ),
    (
        "data id # has # extents, but neither inode nor cut",
        "SELECT e.data, e.extents FROM (SELECT data, count(*) AS extents FROM extents GROUP BY data) e \
         WHERE e.data NOT IN (SELECT data FROM inodes) AND e.data NOT IN (SELECT data FROM cuts)",
    ),
    (
        "data id # has # patches, but no inode",
        "SELECT data, count(*) FROM patches WHERE data NOT IN (SELECT data FROM inodes) GROUP BY data",
    ),
    (
        "patch # of data id # has no bytes",
        "SELECT sequence, data FROM (SELECT sequence, data FROM patches UNION ALL SELECT sequence, data FROM patches_past) \
         WHERE sequence NOT IN (SELECT sequence FROM patch_bytes)",
    ),
    (
        "# bytes are kept of patch #, which does not exist",
        "SELECT length(bytes), sequence FROM patch_bytes \
         WHERE sequence NOT IN (SELECT sequence FROM patches UNION ALL SELECT sequence FROM patches_past)",
    ),
    (
        "# blocks lie in segment #, which does not exist",
        "SELECT count(*), segment FROM blocks WHERE segment NOT IN (SELECT id FROM segments) GROUP BY segment",
    ),
];

impl Meta {
    /// Check the last committed state: SQLite's own integrity, the rules between tables, reference counts, counters.
    /// Returns what is wrong, one sentence each; nothing if all is well. Memory: about 60 bytes a block.
    ///
    /// # Errors
    /// [`crate::Error::Database`] if it cannot even be read.
    pub fn verify(&self) -> Result<Vec<String>> {
        self.reader()?.verify()
    }
}

impl Reader {
    /// [`Meta::verify`] of this state.
    ///
    /// # Errors
    /// [`crate::Error::Database`].
    pub fn verify(&self) -> Result<Vec<String>> {
        let mut findings = Vec::new();
        let mut statement = self.conn.prepare("PRAGMA integrity_check(20)").at(&self.path)?;
        let mut rows = statement.query([]).at(&self.path)?;
        while let Some(row) = rows.next().at(&self.path)? {
            let line: String = row.get(0).at(&self.path)?;
            if line != "ok" {
                findings.push(format!("metadata database: {line}"));
            }
        }
        for (text, sql) in RULES {
            self.check_rule(text, sql, &mut findings)?;
        }
        self.check_refs(&mut findings)?;
        findings.extend(super::quota::verify(&self.conn, &self.path)?);
        let (stored, counted) = (self.counters()?, self.count()?);
        if stored != counted {
            findings.push(format!("counters say {stored:?}, the tables hold {counted:?}"));
        }
        Ok(findings)
    }

    fn check_rule(&self, text: &str, sql: &str, findings: &mut Vec<String>) -> Result<()> {
        let mut statement = self.conn.prepare(sql).at(&self.path)?;
        let width = statement.column_count();
        let mut rows = statement.query([]).at(&self.path)?;
        let mut found = 0;
        while let Some(row) = rows.next().at(&self.path)? {
            found += 1;
            if found > FINDINGS_MAX {
                continue;
            }
            let mut finding = text.to_owned();
            for column in 0..width {
                finding = finding.replacen('#', &number(row, column).at(&self.path)?.to_string(), 1);
            }
            findings.push(finding);
        }
        if found > FINDINGS_MAX {
            findings.push(format!("and {} more like the last", found - FINDINGS_MAX));
        }
        Ok(())
    }

    /// Counts every extent, current and kept, against the references of the blocks.
    fn check_refs(&self, findings: &mut Vec<String>) -> Result<()> {
        let mut counts: HashMap<BlockId, i64> = HashMap::new();
        let mut statement =
            self.conn.prepare("SELECT key FROM extents UNION ALL SELECT key FROM extents_past").at(&self.path)?;
        let mut rows = statement.query([]).at(&self.path)?;
        while let Some(row) = rows.next().at(&self.path)? {
            let key = BlockKey(row.get(0).at(&self.path)?);
            *counts.entry((self.block_id)(&key)).or_default() += 1;
        }
        let mut found = Findings::default();
        self.for_each_block(|block| {
            found.block(block.id, block.refs, block.state, counts.remove(&block.id).unwrap_or(0));
            Ok(())
        })?;
        found.unknown(counts);
        findings.extend(found.into_lines());
        Ok(())
    }

    /// Counters as stored.
    fn counters(&self) -> Result<Counters> {
        match shelf::get(&self.conn, Shelf::Settings, COUNTERS_KEY).at(&self.path)? {
            Some(bytes) => Counters::decode(&bytes),
            None => Ok(Counters::fresh()),
        }
    }

    /// Counters as the rows say; what is next is taken as stored, unless a row has it already.
    fn count(&self) -> Result<Counters> {
        let stored = self.counters()?;
        let sums = |sql: &str| -> Result<(u64, u64, u64)> {
            self.conn.query_row(sql, [], |row| Ok((number(row, 0)?, number(row, 1)?, number(row, 2)?))).at(&self.path)
        };
        let (inodes, next_ino, next_data) =
            sums("SELECT count(*), coalesce(max(ino), 0) + 1, coalesce(max(data), 0) + 1 FROM inodes")?;
        let (files, logical_bytes, _) = sums("SELECT count(*), coalesce(sum(size), 0), 0 FROM inodes WHERE kind = 1")?;
        let (live_blocks, unique_bytes, stored_bytes) = sums(
            "SELECT count(*), coalesce(sum(plain_len), 0), coalesce(sum(sealed_len), 0) FROM blocks WHERE state = 0",
        )?;
        let (dead_blocks, dead_bytes, _) =
            sums("SELECT count(*), coalesce(sum(sealed_len), 0), 0 FROM blocks WHERE state <> 0")?;
        let (next_segment, cuts, _) = sums(
            "SELECT (SELECT coalesce(max(id), 0) + 1 FROM segments), (SELECT coalesce(max(sequence), 0) FROM cuts), 0",
        )?;
        Ok(Counters {
            next_ino: stored.next_ino.max(next_ino),
            next_data: stored.next_data.max(next_data),
            next_segment: stored.next_segment.max(next_segment),
            cuts: stored.cuts.max(cuts),
            inodes,
            files,
            logical_bytes,
            live_blocks,
            unique_bytes,
            stored_bytes,
            dead_blocks,
            dead_bytes,
        })
    }
}
