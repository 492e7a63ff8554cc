//! The first bytes of every segment file.

use super::{FORMAT, HeaderError, RECORD_ALIGN, check_head};
use crate::geometry::Geometry;
use crate::ids::{Generation, Incarnation, MemberId, SegmentId, ShardIndex, Term, VolumeId};
use crate::wire::{Put, Reader, TRAILER_LEN, Trailer, append_trailer, check_trailer};

/// Bytes before the first record of a segment file: one page, so that it is written and read at once.
pub const SEGMENT_HEADER_LEN: usize = 4096;

/// Largest segment file, bytes. Segments are at most 256 MiB by default; the rest is room for configuration.
pub const SEGMENT_CAPACITY_MAX: u64 = 4 << 30;

const MAGIC: [u8; 8] = *b"brineSEG";
const HEAD_LEN: usize = 96;

/// What every file of a segment says of itself and its siblings, durable before the first record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The volume.
    pub volume: VolumeId,
    /// The segment.
    pub segment: SegmentId,
    /// Random number of this segment's life.
    pub incarnation: Incarnation,
    /// k and m of all its stripes.
    pub geometry: Geometry,
    /// Which slot this file is.
    pub slot: ShardIndex,
    /// The member on which each slot was placed; `None` where a slot is vacant. k+m entries.
    pub placement: Vec<Option<MemberId>>,
    /// Length to which the file may grow, bytes.
    pub capacity: u64,
    /// Term of the writer that opened it.
    pub term: Term,
    /// The last closed generation when it was opened.
    pub created_generation: Generation,
}

impl SegmentHeader {
    /// The header's [`SEGMENT_HEADER_LEN`] bytes.
    ///
    /// # Panics
    /// If the fields contradict each other; decoding would refuse the same.
    pub fn encode(&self, mac_key: &[u8; 32]) -> Vec<u8> {
        if let Err(error) = self.check() {
            panic!("refusing to write a segment header that could not be read: {error}");
        }
        let mut out = Vec::with_capacity(SEGMENT_HEADER_LEN);
        out.put(&MAGIC);
        out.put_u16(FORMAT);
        out.put_u8(self.geometry.data() as u8);
        out.put_u8(self.geometry.parity() as u8);
        out.put_u8(self.slot.0);
        out.put(&[0; 3]);
        out.put(&self.volume.0);
        out.put_u64(self.segment.0);
        out.put(&self.incarnation.0);
        out.put_u64(self.capacity);
        out.put_u64(self.term.0);
        out.put_u64(self.created_generation.0);
        out.put_u64(self.occupied());
        out.put_u64(0);
        debug_assert_eq!(out.len(), HEAD_LEN);
        for member in &self.placement {
            out.put(&member.unwrap_or_default().0);
        }
        out.resize(SEGMENT_HEADER_LEN - TRAILER_LEN, 0);
        append_trailer(&mut out, 0, mac_key);
        out
    }

    /// Reads the header at the front of `bytes` and verifies its checksum.
    pub fn decode(bytes: &[u8]) -> Result<UnverifiedSegmentHeader, HeaderError> {
        check_head(bytes, &MAGIC, SEGMENT_HEADER_LEN)?;
        let mut reader = Reader::new(&bytes[8..]);
        let format = reader.u16()?;
        if format != FORMAT {
            return Err(HeaderError::Version(format));
        }
        let (body, trailer) = check_trailer(&bytes[..SEGMENT_HEADER_LEN]).ok_or(HeaderError::Checksum)?;
        let mut reader = Reader::new(&body[10..]);
        let geometry = Geometry::new(reader.u8()?, reader.u8()?).ok_or(HeaderError::Field("geometry"))?;
        let slot = ShardIndex(reader.u8()?);
        if reader.array()? != [0; 3] {
            return Err(HeaderError::Field("reserved bytes"));
        }
        let volume = VolumeId(reader.array()?);
        let segment = SegmentId(reader.u64()?);
        let incarnation = Incarnation(reader.array()?);
        let capacity = reader.u64()?;
        let term = Term(reader.u64()?);
        let created_generation = Generation(reader.u64()?);
        let occupied = reader.u64()?;
        if reader.u64()? != 0 {
            return Err(HeaderError::Field("reserved bytes"));
        }
        let mut placement = Vec::with_capacity(geometry.total());
        for index in 0..geometry.total() {
            let member = MemberId(reader.array()?);
            let taken = occupied >> index & 1 == 1;
            if !taken && member != MemberId::default() {
                return Err(HeaderError::Field("a vacant slot with a member"));
            }
            placement.push(taken.then_some(member));
        }
        if reader.rest().iter().any(|&byte| byte != 0) {
            return Err(HeaderError::Field("padding"));
        }
        let header =
            Self { volume, segment, incarnation, geometry, slot, placement, capacity, term, created_generation };
        if header.occupied() != occupied {
            return Err(HeaderError::Field("slot mask"));
        }
        header.check()?;
        Ok(UnverifiedSegmentHeader { header, trailer })
    }

    /// Mask of the occupied slots; bit i is slot i.
    pub fn occupied(&self) -> u64 {
        self.placement.iter().enumerate().fold(0, |mask, (index, member)| mask | u64::from(member.is_some()) << index)
    }

    /// What must hold between the fields, before writing and after reading.
    fn check(&self) -> Result<(), HeaderError> {
        let ensure = |holds: bool, what| if holds { Ok(()) } else { Err(HeaderError::Field(what)) };
        ensure(self.placement.len() == self.geometry.total(), "placement")?;
        let own = self.placement.get(usize::from(self.slot.0)).copied().flatten();
        ensure(own.is_some(), "the slot of this file is vacant")?;
        let mut members: Vec<_> = self.placement.iter().flatten().collect();
        members.sort_unstable();
        ensure(members.windows(2).all(|pair| pair[0] != pair[1]), "one member in two slots")?;
        ensure(self.capacity <= SEGMENT_CAPACITY_MAX && self.capacity.is_multiple_of(RECORD_ALIGN), "capacity")?;
        ensure(self.capacity >= SEGMENT_HEADER_LEN as u64, "capacity")
    }
}

/// A segment header whose checksum holds. Who wrote it is not known until [`UnverifiedSegmentHeader::verify`].
#[derive(Clone, Debug)]
pub struct UnverifiedSegmentHeader {
    header: SegmentHeader,
    trailer: Trailer,
}

impl UnverifiedSegmentHeader {
    /// The header, if it was written with this key; else [`HeaderError::Mac`].
    pub fn verify(self, mac_key: &[u8; 32]) -> Result<SegmentHeader, HeaderError> {
        if self.trailer.verify(mac_key) { Ok(self.header) } else { Err(HeaderError::Mac) }
    }

    /// The header as it stands, for a scrub without key. Accidents are excluded, forgery is not.
    pub fn unauthenticated(&self) -> &SegmentHeader {
        &self.header
    }
}
