//! What a volume says about itself. Fields are documented in docs/CLI.md and only ever added to.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{DomainPolicy, Volume};
use crate::backing::Health;
use crate::blocks::{CacheFigures, DamageFigures};
use crate::error::Result;
use crate::ids::{MemberId, SegmentId};
use crate::seal::Codec;

/// Figures for statfs(2), in bytes where not said otherwise.
#[derive(Clone, Copy, Debug, Default)]
pub struct StatFs {
    /// Unit of the three figures below.
    pub block_size: u32,
    /// Blocks of plaintext the volume could ever hold.
    pub blocks: u64,
    /// Blocks that can still be written.
    pub free: u64,
    /// The same for ordinary users.
    pub available: u64,
    /// Inodes in use and still possible.
    pub files: u64,
    /// Inodes still possible.
    pub files_free: u64,
}

/// Past states, and writers that met.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct VersionsStatus {
    /// Former states are kept.
    pub history: bool,
    /// Snapshots there are.
    pub snapshots: usize,
    /// Conditional writes that met another version, since the volume was opened.
    pub conflicts: u64,
    /// How often one was tried again.
    pub retries: u64,
}

/// Status of an open volume.
#[derive(Clone, Debug, Serialize)]
pub struct VolumeStatus {
    /// Identity, hexadecimal.
    pub volume: String,
    /// Label; may be empty.
    pub label: String,
    /// Number of the last committed state.
    pub generation: u64,
    /// "healthy", "degraded", "critical", "read-only" or "failed".
    pub health: &'static str,
    /// Why it is not healthy, one sentence each.
    pub health_reason: Vec<String>,
    /// Shards of a stripe.
    pub geometry: GeometryStatus,
    /// Directories that can still be lost without losing a byte of what was acknowledged.
    pub tolerated_losses: usize,
    /// Slots of a stripe that must be synced before a commit is acknowledged, as the directories are now.
    pub min_ack: usize,
    /// Segments that are not complete on k+m directories, because a sync failed or was not waited for, or one could not
    /// be written when they were opened. They are caught up when the directories can be written again.
    pub behind: Vec<BehindStatus>,
    /// The backing directories.
    pub directories: Vec<DirectoryStatus>,
    /// Space, bytes.
    pub space: SpaceStatus,
    /// Deduplication.
    pub dedup: DedupStatus,
    /// Redundancy.
    pub redundancy: RedundancyStatus,
    /// Damage met since the volume was opened.
    pub damage: DamageStatus,
    /// The cache of decoded blocks.
    pub cache: CacheFigures,
    /// Past states.
    pub versions: VersionsStatus,
    /// Commits made durable since the volume was opened.
    pub commits: u64,
    /// R: ciphertexts of equal content at most, in a domain and epoch.
    pub copies: u16,
    /// Epoch of new blocks.
    pub epoch: u32,
    /// Salt epochs, counted at most a minute ago.
    pub salt: crate::reseal::SaltStatus,
    /// "volume" or "owner".
    pub domain: &'static str,
    /// "none" or "lz4".
    pub codec: &'static str,
    /// Where the metadata database lies.
    pub state_dir: String,
    /// Term of this writer, or of the last one if this one only reads.
    pub term: u64,
    /// Who has the volume now, if it was taken from this writer.
    pub taken_over: Option<TakenOverStatus>,
    /// What a user should know about how it was opened.
    pub warnings: Vec<String>,
}

/// Another writer that has the volume.
#[derive(Clone, Debug, Serialize)]
pub struct TakenOverStatus {
    /// Its term.
    pub term: u64,
    /// Its host; empty if its fence cannot be read.
    pub host: String,
    /// Its state directory; empty if its fence cannot be read.
    pub state_dir: String,
}

/// A segment that some directories hold in part.
#[derive(Clone, Debug, Serialize)]
pub struct BehindStatus {
    /// Number of the segment.
    pub segment: u64,
    /// Generation in which it was opened: it holds parts of that and of later ones. `None`: not known yet.
    pub since: Option<u64>,
    /// Directories that can still be lost without losing a byte of it.
    pub tolerated_losses: usize,
    /// Paths of the directories that lack something of it.
    pub directories: Vec<String>,
    /// Shards that no directory took: too few could be written when it was opened.
    pub vacant: usize,
}

/// k and m.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct GeometryStatus {
    /// Data shards.
    pub data: usize,
    /// Parity shards.
    pub parity: usize,
}

/// One backing directory.
#[derive(Clone, Debug, Serialize)]
pub struct DirectoryStatus {
    /// Identity, hexadecimal.
    pub id: String,
    /// Path.
    pub path: String,
    /// "healthy", "missing", "sick", "failed" or "duplicate".
    pub state: &'static str,
    /// Why, if not healthy.
    pub reason: String,
    /// Size of its filesystem.
    pub total_bytes: u64,
    /// Free there.
    pub free_bytes: u64,
    /// Reads asked of it.
    pub reads: u64,
    /// Reads that failed.
    pub read_errors: u64,
    /// Shards that were not what belongs there.
    pub rejected_shards: u64,
    /// Reads that came too late.
    pub late_reads: u64,
    /// Writes asked of it.
    pub writes: u64,
    /// Writes and syncs that failed.
    pub write_errors: u64,
}

/// Space, bytes.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct SpaceStatus {
    /// Sum of file sizes.
    pub logical_bytes: u64,
    /// Plaintext of distinct blocks that are in use.
    pub unique_bytes: u64,
    /// The same, sealed.
    pub stored_bytes: u64,
    /// Shards and headers of all blocks, dead ones included, estimated from their geometry.
    pub raw_bytes: u64,
    /// Size of all present directories.
    pub raw_total_bytes: u64,
    /// Free in all present directories.
    pub raw_free_bytes: u64,
    /// Plaintext that still fits.
    pub usable_free_bytes: u64,
    /// Sealed bytes that nothing refers to any more.
    pub reclaimable_bytes: u64,
    /// Files of all kinds.
    pub files: u64,
}

/// Deduplication.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct DedupStatus {
    /// Sum of file sizes over the plaintext stored for them; 1 if nothing is shared. Holes and inline files count as shared.
    pub ratio: f64,
    /// Chunks written that were stored already, since the volume was opened.
    pub hits: u64,
    /// Chunks written that were not.
    pub misses: u64,
    /// Chunks stored before they were accepted, because others synced meanwhile.
    pub stored_ahead: u64,
}

/// Redundancy.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct RedundancyStatus {
    /// Raw bytes for one sealed byte, (k+m)/k.
    pub factor: f64,
    /// Blocks that were read with parity.
    pub degraded_reads: u64,
}

/// Damage.
#[derive(Clone, Debug, Serialize)]
pub struct DamageStatus {
    /// Shards found missing or wrong.
    pub shards_bad: u64,
    /// Shards written anew.
    pub shards_repaired: u64,
    /// Blocks that could not be read.
    pub blocks_lost: u64,
    /// Stripes waiting to be healed.
    pub queued: usize,
    /// The last events.
    pub recent: Vec<DamageItem>,
}

/// One thing found damaged.
#[derive(Clone, Debug, Serialize)]
pub struct DamageItem {
    /// Path of the file that was being read; empty if unknown.
    pub path: String,
    /// The block's id.
    pub block: String,
    /// What was wrong.
    pub what: String,
    /// False if bytes are lost.
    pub recoverable: bool,
}

impl Volume {
    /// Figures for statfs(2).
    pub fn stat_fs(&self) -> Result<StatFs> {
        const BLOCK: u64 = 4096;
        let raw = self.space.raw();
        let figures = self.meta.counters();
        let files = figures.inodes;
        // Dead blocks are freed before anyone is told that there is no space.
        let free = raw.usable_free.saturating_add(figures.dead_bytes).min(raw.usable_total) / BLOCK;
        Ok(StatFs {
            block_size: BLOCK as u32,
            blocks: raw.usable_total / BLOCK,
            free,
            available: free,
            files: files + free,
            files_free: free,
        })
    }

    fn versions_status(&self) -> Result<VersionsStatus> {
        let (history, snapshots) = self.meta.with(|txn| Ok((txn.keeps_history(), txn.snapshots()?.len())))?;
        let (conflicts, retries) = self.meta.conflicts();
        Ok(VersionsStatus { history, snapshots, conflicts, retries })
    }

    /// Everything `brine status` shows of an open volume.
    ///
    /// # Errors
    /// [`crate::Error::Database`].
    pub fn status(&self) -> Result<VolumeStatus> {
        let figures = self.meta.counters();
        let raw = self.space.raw();
        let directories: Vec<DirectoryStatus> = self.set.members().iter().map(directory).collect();
        let absent = self.set.members().iter().filter(|member| !member.can_read()).count();
        let damage: DamageFigures = self.blocks.damage().figures();
        let (behind, lost_slots) = self.behind()?;
        let (health, health_reason) = self.health(&directories, (absent, behind.len()), &damage);
        let factor = self.geometry.total() as f64 / self.geometry.data() as f64;
        Ok(VolumeStatus {
            volume: self.id.to_string(),
            label: self.label.clone(),
            generation: self.meta.committed().0,
            health,
            health_reason,
            geometry: GeometryStatus { data: self.geometry.data(), parity: self.geometry.parity() },
            tolerated_losses: self.geometry.parity().saturating_sub(absent.max(lost_slots)),
            min_ack: self.blocks.segments().min_ack(),
            behind,
            directories,
            space: SpaceStatus {
                logical_bytes: figures.logical_bytes,
                unique_bytes: figures.unique_bytes,
                stored_bytes: figures.stored_bytes,
                raw_bytes: ((figures.stored_bytes + figures.dead_bytes) as f64 * factor) as u64,
                raw_total_bytes: raw.total,
                raw_free_bytes: raw.free,
                usable_free_bytes: raw.usable_free,
                reclaimable_bytes: figures.dead_bytes,
                files: figures.inodes,
            },
            dedup: DedupStatus {
                ratio: if figures.unique_bytes == 0 {
                    1.0
                } else {
                    figures.logical_bytes as f64 / figures.unique_bytes as f64
                },
                hits: self.blocks.figures().dedup_hits.load(std::sync::atomic::Ordering::Relaxed),
                misses: self.blocks.figures().dedup_misses.load(std::sync::atomic::Ordering::Relaxed),
                stored_ahead: self.blocks.figures().stored_ahead.load(std::sync::atomic::Ordering::Relaxed),
            },
            redundancy: RedundancyStatus {
                factor,
                degraded_reads: self.blocks.figures().degraded_reads.load(std::sync::atomic::Ordering::Relaxed),
            },
            damage: self.damage_status(&damage),
            cache: self.blocks.cache().figures(),
            versions: self.versions_status()?,
            commits: self.commit.count(),
            copies: self.policy.copies,
            epoch: self.epoch(),
            salt: crate::reseal::status(self)?,
            domain: match self.policy.domain {
                DomainPolicy::Volume => "volume",
                DomainPolicy::Owner => "owner",
            },
            codec: match self.policy.codec {
                Codec::None => "none",
                Codec::Lz4 => "lz4",
            },
            state_dir: self.state_dir.display().to_string(),
            term: self.term.0,
            taken_over: self.fence.taken_over().map(|other| {
                let (host, state_dir) = other.by.unwrap_or_default();
                TakenOverStatus { term: other.term.0, host, state_dir: state_dir.display().to_string() }
            }),
            warnings: self.warnings(),
        })
    }

    /// Segments that are not complete in all their directories, and the most slots that any segment is without, because
    /// they are vacant, lack something, or their directory is not there.
    fn behind(&self) -> Result<(Vec<BehindStatus>, usize)> {
        let lacking: BTreeMap<SegmentId, u64> = self.blocks.segments().lacking_segments().into_iter().collect();
        let rows = self.meta.with(|txn| txn.segments())?;
        let unknown = lacking.keys().filter(|id| !rows.iter().any(|row| row.id == **id));
        let unknown = unknown.filter_map(|id| Some((*id, None, self.blocks.segment_info(*id).ok()?.slots.clone())));
        let unknown: Vec<_> = unknown.collect();
        let (mut behind, mut most) = (Vec::new(), 0);
        for (id, since, slots) in rows.into_iter().map(|row| (row.id, Some(row.since), row.slots)).chain(unknown) {
            let slots = if slots.contains(&None) { self.blocks.placement(id)?.slots.clone() } else { slots };
            let mask = lacking.get(&id).copied().unwrap_or(0);
            let member = |slot: &Option<MemberId>| slot.as_ref().and_then(|id| self.set.get(id)).cloned();
            let is_lost = |(n, slot): &(usize, &Option<MemberId>)| {
                mask >> n & 1 == 1 || !member(slot).is_some_and(|member| member.can_read())
            };
            let lost = slots.iter().enumerate().filter(is_lost).count();
            most = most.max(lost);
            let vacant = slots.iter().filter(|slot| slot.is_none()).count();
            if mask == 0 && vacant == 0 {
                continue;
            }
            let lacks = slots.iter().enumerate().filter(|(n, _)| mask >> n & 1 == 1);
            behind.push(BehindStatus {
                segment: id.0,
                since: since.map(|since| since.0),
                tolerated_losses: self.geometry.parity().saturating_sub(lost),
                directories: lacks.filter_map(|(_, slot)| Some(member(slot)?.path().display().to_string())).collect(),
                vacant,
            });
        }
        Ok((behind, most))
    }

    fn damage_status(&self, figures: &DamageFigures) -> DamageStatus {
        let recent = self
            .blocks
            .damage()
            .recent()
            .into_iter()
            .map(|event| DamageItem {
                path: event.ino.and_then(|ino| self.path_of(ino).ok()).unwrap_or_default(),
                block: event.block.to_string(),
                what: event.what,
                recoverable: event.recoverable,
            })
            .collect();
        DamageStatus {
            shards_bad: figures.shards_bad,
            shards_repaired: figures.shards_repaired,
            blocks_lost: figures.blocks_lost,
            queued: self.blocks.damage().queued(),
            recent,
        }
    }

    fn health(
        &self,
        directories: &[DirectoryStatus],
        (absent, behind): (usize, usize),
        damage: &DamageFigures,
    ) -> (&'static str, Vec<String>) {
        let mut reasons: Vec<String> = directories
            .iter()
            .filter(|d| d.state != "healthy")
            .map(|d| {
                let reason = if d.reason.is_empty() { String::new() } else { format!(": {}", d.reason) };
                format!("directory {} is {}{reason}", d.path, d.state)
            })
            .collect();
        if let Some(reason) = self.gc_stopped() {
            reasons.push(format!("space is not given back: {reason}"));
        }
        if damage.blocks_lost > 0 {
            reasons.push(format!("{} blocks could not be read; `brine check` lists the files", damage.blocks_lost));
        }
        let outstanding = self.blocks.damage().outstanding();
        if outstanding > 0 {
            reasons.push(format!("{outstanding} bad shards are not healed yet; `brine heal` writes them anew"));
        }
        if behind > 0 {
            reasons.push(format!("{behind} segments are not complete in all their directories; they are caught up"));
        }
        let m = self.geometry.parity();
        let failure = self.is_read_only().filter(|_| !self.asked_read_only);
        let word = if absent > m || damage.blocks_lost > 0 {
            "failed"
        } else if let Some(reason) = failure {
            reasons.push(reason);
            "read-only"
        } else if absent > 0 && absent == m {
            "critical"
        } else if !reasons.is_empty() {
            "degraded"
        } else {
            "healthy"
        };
        (word, reasons)
    }
}

fn directory(member: &std::sync::Arc<crate::backing::Member>) -> DirectoryStatus {
    let (state, reason) = match member.health() {
        Health::Healthy => ("healthy", String::new()),
        Health::Missing { reason } => ("missing", reason),
        Health::Sick => ("sick", "it answers too slowly".into()),
        Health::Failed { reason } => ("failed", reason),
        Health::Duplicate => ("duplicate", "another directory claims to be the same; name the true one".into()),
    };
    let space = member.space();
    let figures = member.stats();
    DirectoryStatus {
        id: member.id.to_string(),
        path: member.path().display().to_string(),
        state,
        reason,
        total_bytes: space.as_ref().map_or(0, |s| s.total_bytes),
        free_bytes: space.as_ref().map_or(0, |s| s.available_bytes),
        reads: figures.reads,
        read_errors: figures.read_errors,
        rejected_shards: figures.rejected,
        late_reads: figures.late,
        writes: figures.writes,
        write_errors: figures.write_errors,
    }
}
