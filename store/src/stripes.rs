//! Whole stripes, looked at with care: every shard read and verified, the message joined from those that are good.
//! Also what a segment's own files say of it, without a database.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::backing::{BackingSet, Hedge, Member, ReadPlan, ShardRead};
use crate::erasure::Coder;
use crate::geometry::Geometry;
use crate::ids::{Incarnation, MemberId, SegmentId, ShardIndex, VolumeId};
use crate::shard::{
    HEADER_LEN_MAX, RECORD_ALIGN, RecordHeader, SEGMENT_HEADER_LEN, SegmentHeader, UnverifiedHeader, looks_like_record,
    quick_check,
};

/// What a reader must know of a segment.
#[derive(Clone, Debug)]
pub struct SegmentInfo {
    /// Its life.
    pub incarnation: Incarnation,
    /// Its shards.
    pub geometry: Geometry,
    /// The member of each slot; `None`: vacant.
    pub slots: Vec<Option<MemberId>>,
    /// Length each file may reach, bytes.
    pub capacity: u64,
}

/// Where a stripe lies: one record at `offset` in each file of the segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StripePlace {
    /// The segment.
    pub segment: SegmentId,
    /// Offset of the records, bytes.
    pub offset: u64,
    /// Length of a record, bytes.
    pub record_len: u32,
}

/// A shard that was verified in full.
#[derive(Debug)]
pub struct GoodShard {
    /// Its index.
    pub index: ShardIndex,
    /// What its header says.
    pub header: RecordHeader,
    bytes: Vec<u8>,
    payload: Range<usize>,
}

impl GoodShard {
    /// The shard itself.
    pub fn payload(&self) -> &[u8] {
        &self.bytes[self.payload.clone()]
    }
}

/// What is left of a stripe.
#[derive(Debug, Default)]
pub struct Survey {
    /// Shards that verified.
    pub good: Vec<GoodShard>,
    /// Occupied slots whose shard is missing or wrong, and what is wrong.
    pub bad: Vec<(usize, &'static str)>,
}

impl Survey {
    /// The shards of the stripe tag that most have: only those combine (R4).
    pub fn largest_group(&self) -> Vec<&GoodShard> {
        self.groups().into_iter().next().unwrap_or_default()
    }

    /// Slots whose shard is missing or wrong though their directory can be read.
    pub fn wrong(&self) -> u64 {
        let wrong = self.bad.iter().filter(|(_, what)| *what != DIRECTORY_MISSING);
        wrong.fold(0, |mask, (slot, _)| mask | 1 << slot)
    }

    /// Shards by stripe tag, the most numerous first.
    pub fn groups(&self) -> Vec<Vec<&GoodShard>> {
        let mut groups: HashMap<[u8; 32], Vec<&GoodShard>> = HashMap::new();
        for shard in &self.good {
            groups.entry(shard.header.stripe_tag).or_default().push(shard);
        }
        let mut groups: Vec<_> = groups.into_values().collect();
        groups.sort_by_key(|group| std::cmp::Reverse(group.len()));
        groups
    }

    /// Slots that should hold a whole copy; `None`: this is no record of copies, every occupied slot holds a shard.
    pub fn copies(&self) -> Option<u64> {
        let group = self.largest_group();
        let listed = |shard: &&GoodShard| shard.header.commit.filter(|_| shard.header.kind.is_copy());
        // A copy that healing added is listed in its own header, not in those written before it.
        group.iter().filter_map(listed).map(|commit| commit.copies).reduce(|all, some| all | some)
    }
}

/// What is wrong with a shard whose directory cannot be read.
pub const DIRECTORY_MISSING: &str = "directory missing";

/// Bytes searched at once for the next record behind a hole; a multiple of [`RECORD_ALIGN`].
const SEARCH_LEN: usize = 1 << 20;
/// Searched before that: a record in whole copies begins with a page, at most this far behind.
const SEARCH_FIRST: usize = 4096;
/// How long directories are asked who holds the slots of a segment.
const PLACEMENT_PATIENCE: Duration = Duration::from_secs(1);

/// Reads stripes from the members of a volume.
pub struct Stripes {
    set: Arc<BackingSet>,
    volume: VolumeId,
    header_mac: [u8; 32],
    coders: Mutex<HashMap<(usize, usize), Arc<Coder>>>,
}

impl std::fmt::Debug for Stripes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stripes").field("volume", &self.volume).finish_non_exhaustive()
    }
}

impl Stripes {
    /// Over the members of `set`.
    pub fn new(set: Arc<BackingSet>, volume: VolumeId, header_mac: [u8; 32]) -> Self {
        Self { set, volume, header_mac, coders: Mutex::default() }
    }

    /// The members.
    pub fn set(&self) -> &Arc<BackingSet> {
        &self.set
    }

    /// The coder of a geometry.
    pub fn coder(&self, geometry: Geometry) -> Arc<Coder> {
        let mut coders = self.coders.lock();
        coders.entry((geometry.data(), geometry.parity())).or_insert_with(|| Arc::new(Coder::new(geometry))).clone()
    }

    /// Read and verify every shard of a stripe.
    pub fn survey(&self, place: StripePlace, info: &SegmentInfo) -> Survey {
        let mut survey = Survey::default();
        let mut slots = Vec::new();
        let mut wants = Vec::new();
        for (slot, member) in info.slots.iter().enumerate() {
            let Some(member) = member else { continue };
            if !self.set.get(member).is_some_and(|m| m.can_read()) {
                survey.bad.push((slot, DIRECTORY_MISSING));
                continue;
            }
            slots.push(slot);
            wants.push(ShardRead {
                member: *member,
                segment: place.segment,
                offset: place.offset,
                len: place.record_len as usize,
            });
        }
        let accept = |_: usize, bytes: &[u8]| bytes.len() == place.record_len as usize;
        let plan = ReadPlan { need: wants.len(), first: wants.len(), hedge: Hedge::Adaptive, accept: &accept };
        let outcome = self.set.read_shards(&wants, plan);
        for (want, _) in &outcome.bad {
            survey.bad.push((slots[*want], "unreadable"));
        }
        for (want, bytes) in outcome.good {
            let slot = slots[want];
            match self.verify_record(&bytes, place, info, slot) {
                Ok((header, payload)) => {
                    survey.good.push(GoodShard { index: ShardIndex(slot as u8), bytes, payload, header });
                }
                Err(what) => {
                    if let Some(member) = info.slots[slot].and_then(|id| self.set.get(&id)) {
                        member.count_rejected();
                    }
                    survey.bad.push((slot, what));
                }
            }
        }
        // The files of slots without a copy have a hole here, as they should.
        if let Some(copies) = survey.copies() {
            survey.bad.retain(|(slot, _)| copies >> slot & 1 == 1);
        }
        survey.bad.sort_unstable();
        survey
    }

    fn verify_record(
        &self,
        bytes: &[u8],
        place: StripePlace,
        info: &SegmentInfo,
        slot: usize,
    ) -> Result<(RecordHeader, Range<usize>), &'static str> {
        if bytes.iter().all(|byte| *byte == 0) {
            return Err("punched or lost");
        }
        let index = ShardIndex(slot as u8);
        let payload =
            quick_check(bytes, info.incarnation, place.offset, index).ok_or("not the shard that belongs here")?;
        let header = RecordHeader::decode(bytes)
            .and_then(|header| header.verify(&self.header_mac))
            .map_err(|_| "damaged header")?;
        let identical = header.volume == self.volume
            && header.segment == place.segment
            && header.incarnation == info.incarnation
            && header.offset == place.offset
            && header.shard == index
            && header.geometry == info.geometry;
        if !identical {
            return Err("not the shard that belongs here");
        }
        if *blake3::hash(&bytes[payload.clone()]).as_bytes() != header.payload_checksum {
            return Err("damaged payload");
        }
        Ok((header, payload))
    }

    /// The message of a stripe from as many shards of one group as it needs, padding included. `None` if they do not
    /// fit together.
    pub fn join(&self, chosen: &[&GoodShard], geometry: Geometry) -> Option<Vec<u8>> {
        let k = geometry.data();
        let first = chosen.first()?;
        if first.header.kind.is_copy() {
            return Some(first.payload().to_vec());
        }
        let shard_len = first.payload().len();
        let payloads: Vec<(ShardIndex, &[u8])> = chosen.iter().map(|s| (s.index, s.payload())).collect();
        if payloads.iter().any(|(_, payload)| payload.len() != shard_len) {
            return None;
        }
        let mut message = vec![0; k * shard_len];
        let mut missing = Vec::new();
        for slot in 0..k {
            let part = &mut message[slot * shard_len..(slot + 1) * shard_len];
            match payloads.iter().find(|(index, _)| usize::from(index.0) == slot) {
                Some((_, payload)) => part.copy_from_slice(payload),
                None => missing.push(ShardIndex(slot as u8)),
            }
        }
        if !missing.is_empty() {
            let mut parts: Vec<&mut [u8]> = message
                .chunks_exact_mut(shard_len)
                .enumerate()
                .filter(|(slot, _)| missing.contains(&ShardIndex(*slot as u8)))
                .map(|(_, part)| part)
                .collect();
            self.coder(geometry).reconstruct(&payloads, &missing, &mut parts).ok()?;
        }
        Some(message)
    }

    /// The message of a stripe whose place is known, from the largest group of good shards.
    pub fn message(&self, place: StripePlace, info: &SegmentInfo) -> Option<(RecordHeader, Vec<u8>)> {
        let survey = self.survey(place, info);
        let group = survey.largest_group();
        let needed = group.first()?.header.needed();
        if group.len() < needed {
            return None;
        }
        let mut message = self.join(&group[..needed], info.geometry)?;
        let header = group[0].header.clone();
        message.truncate(header.message_len as usize);
        Some((header, message))
    }

    /// What the files of a segment say of it: the first authentic header.
    pub fn segment_info(&self, segment: SegmentId) -> Option<SegmentInfo> {
        self.segment_infos(segment).into_iter().next()
    }

    /// What the files of a segment say of it. More than one if writers that could not see each other gave one number to
    /// segments of their own.
    pub fn segment_infos(&self, segment: SegmentId) -> Vec<SegmentInfo> {
        let readable = self.set.members().iter().filter(|member| member.can_read());
        self.infos_in(
            segment,
            readable.filter_map(|member| {
                let mut bytes = vec![0; SEGMENT_HEADER_LEN];
                member.read_segment(segment, 0, &mut bytes).ok().map(|len| bytes[..len].to_vec())
            }),
        )
    }

    /// Who holds the slots of a segment, as the files of healthy members tell; true if every member of the volume
    /// answered. One that hangs costs a second at most.
    pub fn placement(&self, segment: SegmentId, incarnation: Incarnation) -> (Vec<Option<MemberId>>, bool) {
        let heads = self.set.heads_on_each(segment, SEGMENT_HEADER_LEN, PLACEMENT_PATIENCE);
        let all = heads.len() == self.set.members().len();
        let infos = self.infos_in(segment, heads.into_iter().map(|(_, head)| head));
        let told = infos.into_iter().find(|told| told.incarnation == incarnation);
        (told.map(|told| told.slots).unwrap_or_default(), all)
    }

    fn infos_in(&self, segment: SegmentId, heads: impl Iterator<Item = Vec<u8>>) -> Vec<SegmentInfo> {
        let mut infos: Vec<SegmentInfo> = Vec::new();
        for bytes in heads.filter(|bytes| bytes.len() == SEGMENT_HEADER_LEN) {
            let Ok(header) = SegmentHeader::decode(&bytes).and_then(|header| header.verify(&self.header_mac)) else {
                continue;
            };
            if header.volume != self.volume || header.segment != segment {
                continue;
            }
            if let Some(known) = infos.iter_mut().find(|info| info.incarnation == header.incarnation) {
                // A slot that was vacant may have been given to a directory later, whose file alone tells of it.
                known.slots.iter_mut().zip(header.placement).for_each(|(slot, other)| *slot = slot.or(other));
            } else {
                infos.push(SegmentInfo {
                    incarnation: header.incarnation,
                    geometry: header.geometry,
                    slots: header.placement,
                    capacity: header.capacity,
                });
            }
        }
        infos
    }

    /// The header of the record at an offset: the first authentic one in any file of the segment.
    pub fn header_at(&self, segment: SegmentId, offset: u64, info: &SegmentInfo) -> Option<RecordHeader> {
        let mut bytes = vec![0; HEADER_LEN_MAX];
        for (slot, member) in self.readable_slots(info) {
            let Ok(len) = member.read_segment(segment, offset, &mut bytes) else { continue };
            if let Some(header) = self.header_in(&bytes[..len], (segment, offset), info, slot) {
                return Some(header);
            }
        }
        None
    }

    fn readable_slots<'a>(&'a self, info: &'a SegmentInfo) -> impl Iterator<Item = (usize, &'a Arc<Member>)> {
        let slots = info.slots.iter().enumerate();
        slots.filter_map(|(slot, id)| Some((slot, self.set.get(id.as_ref()?).filter(|member| member.can_read())?)))
    }

    /// The authentic header of the record that belongs at a place, if `bytes` begin with it.
    fn header_in(
        &self,
        bytes: &[u8],
        (segment, offset): (SegmentId, u64),
        info: &SegmentInfo,
        slot: usize,
    ) -> Option<RecordHeader> {
        let found =
            RecordHeader::decode(bytes).and_then(|header: UnverifiedHeader| header.verify(&self.header_mac)).ok()?;
        let identical = found.volume == self.volume
            && found.segment == segment
            && found.incarnation == info.incarnation
            && found.offset == offset
            && usize::from(found.shard.0) == slot
            && found.geometry == info.geometry;
        identical.then_some(found)
    }

    /// Every record of a segment from `offset` on, in order: its place and its header. What was punched, never written
    /// or lost is passed over: behind a place that was handed out and not filled before a crash there may be records
    /// that were acknowledged.
    pub fn records(&self, segment: SegmentId, offset: u64, info: &SegmentInfo) -> Vec<(StripePlace, RecordHeader)> {
        let mut found = Vec::new();
        let mut at = offset.max(SEGMENT_HEADER_LEN as u64).next_multiple_of(RECORD_ALIGN);
        loop {
            while let Some(header) = self.header_at(segment, at, info) {
                let len = header.record_len();
                found.push((StripePlace { segment, offset: at, record_len: len as u32 }, header));
                at += len;
            }
            match self.next_record(segment, at + RECORD_ALIGN, info) {
                Some(next) => at = next,
                None => return found,
            }
        }
    }

    /// Where the first record at or after `from` begins, in whichever file has it.
    fn next_record(&self, segment: SegmentId, from: u64, info: &SegmentInfo) -> Option<u64> {
        let mut next = None;
        for (slot, member) in self.readable_slots(info) {
            let mut at = from;
            let mut bytes = vec![0; SEARCH_LEN + HEADER_LEN_MAX];
            let mut search = SEARCH_FIRST;
            // No further than where another file has one already.
            while next.is_none_or(|next| at < next) {
                let bytes = &mut bytes[..search + HEADER_LEN_MAX];
                let Ok(len) = member.read_segment(segment, at, bytes) else { break };
                let starts = (0..len.min(search)).step_by(RECORD_ALIGN as usize);
                let hit = starts.filter(|start| looks_like_record(&bytes[*start..len])).find(|start| {
                    self.header_in(&bytes[*start..len], (segment, at + *start as u64), info, slot).is_some()
                });
                if let Some(start) = hit {
                    let start = at + start as u64;
                    next = Some(next.map_or(start, |next: u64| next.min(start)));
                    break;
                }
                if len < bytes.len() {
                    break;
                }
                at += search as u64;
                search = SEARCH_LEN;
            }
        }
        next
    }
}
