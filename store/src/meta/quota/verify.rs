//! The recount of `brine check`.

use std::collections::HashMap;

use rusqlite::Connection;

use super::table::Quotas;
use super::{Quota, QuotaState};
use crate::error::Result;
use crate::meta::rows::INODE_QUOTA_SHIFT;
use crate::meta::sql::{At, int};

/// SQL of the bytes that an inode takes: [`InodeRow::charge`].
const CHARGE_SQL: &str = "CASE WHEN kind = 2 THEN size WHEN inline IS NOT NULL AND kind <> 1 THEN 0 \
    WHEN inline IS NOT NULL THEN (length(inline) + 511) / 512 * 512 \
    ELSE min(allocated, CASE WHEN size > 9223372036854771712 THEN 9223372036854775807 \
    ELSE (size + 4095) / 4096 * 4096 END) END";

/// Recount all quotas of a committed state. Returns what does not agree, one sentence each.
pub(in crate::meta) fn verify(conn: &Connection, at: &std::path::Path) -> Result<Vec<String>> {
    let mut quotas = Quotas::default();
    quotas.load(conn, at)?;
    let mut findings = Vec::new();
    let mut counted: HashMap<u32, (u64, u64)> = HashMap::new();
    let sql = format!("SELECT flags >> {INODE_QUOTA_SHIFT}, sum({CHARGE_SQL}), count(*) FROM inodes GROUP BY 1");
    let mut statement = conn.prepare(&sql).at(at)?;
    let mut rows = statement.query([]).at(at)?;
    while let Some(row) = rows.next().at(at)? {
        let (number, bytes, inodes): (u32, i64, i64) =
            row.get(0).and_then(|number| Ok((number, row.get(1)?, row.get(2)?))).at(at)?;
        if number != 0 && !quotas.rows.contains_key(&number) {
            findings.push(format!("{inodes} inodes count in quota {number}, which does not exist"));
        }
        for quota in quotas.chain(number) {
            let sum = counted.entry(quota.number).or_default();
            *sum = (sum.0 + bytes as u64, sum.1 + inodes as u64);
        }
    }
    for quota in quotas.rows.values() {
        let (bytes, inodes) = counted.get(&quota.number).copied().unwrap_or_default();
        if (quota.bytes, quota.inodes) != (bytes, inodes) {
            let Quota { number, directory, bytes: says, inodes: says_inodes, .. } = quota;
            findings.push(format!(
                "quota {number} of directory {directory} says {says} bytes in {says_inodes} inodes, \
                 there are {bytes} bytes in {inodes} inodes"
            ));
        }
        if quota.outer != 0 && !quotas.rows.contains_key(&quota.outer) {
            findings.push(format!("quota {} lies in quota {}, which does not exist", quota.number, quota.outer));
        }
    }
    let sql = format!("SELECT count(*) FROM inodes WHERE ino = ?1 AND kind = 2 AND flags >> {INODE_QUOTA_SHIFT} = ?2");
    let mut directory = conn.prepare(&sql).at(at)?;
    for quota in quotas.rows.values().filter(|quota| quota.state != QuotaState::Removed) {
        let there: i64 =
            directory.query_row([int(quota.directory.0), i64::from(quota.number)], |row| row.get(0)).at(at)?;
        if there == 0 {
            findings
                .push(format!("quota {} is set on directory {}, which is not there", quota.number, quota.directory));
        }
    }
    Ok(findings)
}
