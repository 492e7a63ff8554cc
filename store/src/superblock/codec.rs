//! Superblock <-> bytes.

use super::pointer::SEALED_LEN_MAX;
use super::{
    ACK_OVERRIDES_MAX, AckOverride, BEHIND_MAX, CHECKPOINTS_MAX, CHUNK_BITS, DOMAIN_LEN_MAX, DomainPolicy, FORMAT,
    Features, HOST_LEN_MAX, INCOMPAT_KNOWN, LABEL_LEN_MAX, MEMBERS_MAX, MemberEntry, MemberState, PATH_LEN_MAX,
    SUPERBLOCK_LEN_MAX, Superblock, SuperblockError, UnverifiedSuperblock,
};
use crate::geometry::Geometry;
use crate::ids::{Generation, MemberId, SegmentId, Term, VolumeId};
use crate::keyslot::{KEY_SLOTS_MAX, KeySlot, WrappedConvergence};
use crate::seal::{Codec, VolumeKeys};
use crate::wire::{Put, Reader, append_trailer, check_trailer};

const MAGIC: [u8; 8] = *b"brineSBK";
const FIXED_LEN: usize = 128;

/// Bytes that no format will ever move: magic, format, format needed, length.
const STABLE_LEN: usize = 16;

fn ensure(holds: bool, what: &'static str) -> Result<(), SuperblockError> {
    if holds { Ok(()) } else { Err(SuperblockError::Field(what)) }
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.put_u16(bytes.len() as u16);
    out.put(bytes);
}

fn bytes<'a>(reader: &mut Reader<'a>, len_max: usize, what: &'static str) -> Result<&'a [u8], SuperblockError> {
    let len = usize::from(reader.u16()?);
    ensure(len <= len_max, what)?;
    Ok(reader.take(len)?)
}

fn text(reader: &mut Reader<'_>, len_max: usize, what: &'static str) -> Result<String, SuperblockError> {
    let text = std::str::from_utf8(bytes(reader, len_max, what)?).map_err(|_| SuperblockError::Field(what))?;
    Ok(text.to_owned())
}

fn count(reader: &mut Reader<'_>, max: usize, what: &'static str) -> Result<usize, SuperblockError> {
    let count = usize::from(reader.u16()?);
    ensure(count <= max, what)?;
    Ok(count)
}

impl Superblock {
    /// The file's bytes.
    pub fn encode(&self, keys: &VolumeKeys) -> Result<Vec<u8>, SuperblockError> {
        self.check()?;
        ensure(self.volume == keys.volume(), "volume")?;
        let mut out = Vec::with_capacity(4096);
        self.put_fixed(&mut out);
        put_bytes(&mut out, self.label.as_bytes());
        put_bytes(&mut out, self.host.as_bytes());
        put_bytes(&mut out, &self.state_dir);
        out.put(&self.wrapped_convergence.0);
        out.put_u16(self.key_slots.len() as u16);
        self.key_slots.iter().for_each(|slot| out.put(&slot.encode()));
        out.put_u16(self.members.len() as u16);
        self.members.iter().for_each(|member| member.put(&mut out));
        out.put_u16(self.ack_overrides.len() as u16);
        self.ack_overrides.iter().for_each(|ack| ack.put(&mut out));
        out.put_u16(self.checkpoints.len() as u16);
        for pointer in &self.checkpoints {
            put_bytes(&mut out, &pointer.seal(keys)?);
        }
        if !self.behind.is_empty() {
            out.put_u16(self.behind.len() as u16);
            for (segment, slots) in &self.behind {
                out.put_u64(segment.0);
                out.put_u64(*slots);
            }
        }
        let len = out.len() + crate::wire::TRAILER_LEN;
        if len > SUPERBLOCK_LEN_MAX {
            return Err(SuperblockError::TooLong(len));
        }
        out[12..STABLE_LEN].copy_from_slice(&(len as u32).to_le_bytes());
        append_trailer(&mut out, 0, keys.superblock_mac());
        Ok(out)
    }

    fn put_fixed(&self, out: &mut Vec<u8>) {
        out.put(&MAGIC);
        out.put_u16(FORMAT);
        out.put_u16(FORMAT);
        out.put_u32(0);
        out.put_u64(self.features.compat);
        out.put_u64(self.features.ro_compat);
        out.put_u64(self.features.incompat);
        out.put(&self.volume.0);
        out.put(&self.member.0);
        out.put_u64(self.sequence);
        out.put_u64(self.term.0);
        out.put_u64(self.generation.0);
        out.put_i64(self.created_ns);
        out.put_u64(self.next_segment.0);
        out.put_u32(self.epoch);
        out.put_u16(self.copies);
        out.put_u8(self.geometry.data() as u8);
        out.put_u8(self.geometry.parity() as u8);
        out.put_u8(self.chunk_bits);
        out.put_u8(self.domain as u8);
        out.put_u8(self.codec as u8);
        out.put_u8(self.min_ack.unwrap_or(0));
        out.put_u32(0);
        debug_assert_eq!(out.len(), FIXED_LEN);
    }

    /// Reads a superblock file's bytes and verifies their checksum. Nothing needs a key.
    pub fn decode(file: &[u8]) -> Result<UnverifiedSuperblock, SuperblockError> {
        let damaged = SuperblockError::Damaged;
        if file.len() > SUPERBLOCK_LEN_MAX {
            return Err(damaged("too long"));
        }
        let mut reader = Reader::new(file);
        if reader.array() != Ok(MAGIC) {
            return Err(damaged("other bytes"));
        }
        // The checksum comes first: a flipped bit in the format number must not look like a newer version.
        let (body, trailer) = check_trailer(file).ok_or(damaged("the checksum does not hold"))?;
        let mut reader = Reader::new(&body[MAGIC.len()..]);
        let (format, needs, len) = (reader.u16()?, reader.u16()?, reader.u32()?);
        if needs > FORMAT {
            return Err(SuperblockError::Version { needs });
        }
        ensure(len as usize == file.len() && format >= needs, "length")?;
        let features = Features { compat: reader.u64()?, ro_compat: reader.u64()?, incompat: reader.u64()? };
        let unknown = features.incompat & !INCOMPAT_KNOWN;
        if unknown != 0 {
            return Err(SuperblockError::Features(unknown));
        }
        let mut superblock = Self::read_fixed(&mut reader, features)?;
        let sealed_pointers = superblock.read_rest(&mut reader)?;
        // A newer format may append fields that an older reader can do without.
        ensure(format > FORMAT || reader.rest().is_empty(), "trailing bytes")?;
        superblock.check()?;
        Ok(UnverifiedSuperblock { superblock, sealed_pointers, trailer })
    }

    fn read_fixed(reader: &mut Reader<'_>, features: Features) -> Result<Self, SuperblockError> {
        let (volume, member) = (VolumeId(reader.array()?), MemberId(reader.array()?));
        let (sequence, term, generation) = (reader.u64()?, Term(reader.u64()?), Generation(reader.u64()?));
        let (created_ns, next_segment) = (reader.i64()?, SegmentId(reader.u64()?));
        let (epoch, copies) = (reader.u32()?, reader.u16()?);
        let geometry = Geometry::new(reader.u8()?, reader.u8()?).ok_or(SuperblockError::Field("geometry"))?;
        let (chunk_bits, domain, codec, min_ack) = (reader.u8()?, reader.u8()?, reader.u8()?, reader.u8()?);
        ensure(reader.u32()? == 0, "reserved bytes")?;
        Ok(Self {
            features,
            volume,
            member,
            sequence,
            term,
            generation,
            created_ns,
            next_segment,
            epoch,
            copies,
            geometry,
            chunk_bits,
            domain: match domain {
                0 => DomainPolicy::Volume,
                1 => DomainPolicy::Owner,
                _ => return Err(SuperblockError::Field("dedup domain")),
            },
            codec: Codec::from_u8(codec).ok_or(SuperblockError::Field("codec"))?,
            min_ack: (min_ack != 0).then_some(min_ack),
            label: String::new(),
            host: String::new(),
            state_dir: Vec::new(),
            wrapped_convergence: WrappedConvergence([0; _]),
            key_slots: Vec::new(),
            members: Vec::new(),
            ack_overrides: Vec::new(),
            checkpoints: Vec::new(),
            behind: Vec::new(),
        })
    }

    /// The fields of variable length; returns the sealed checkpoint pointers.
    fn read_rest(&mut self, reader: &mut Reader<'_>) -> Result<Vec<Vec<u8>>, SuperblockError> {
        self.label = text(reader, LABEL_LEN_MAX, "label")?;
        self.host = text(reader, HOST_LEN_MAX, "host")?;
        self.state_dir = bytes(reader, PATH_LEN_MAX, "state directory")?.to_vec();
        self.wrapped_convergence = WrappedConvergence(reader.array()?);
        for _ in 0..count(reader, KEY_SLOTS_MAX, "number of key slots")? {
            let slot = KeySlot::decode(&reader.array()?).map_err(|_| SuperblockError::Field("key slot"))?;
            self.key_slots.push(slot);
        }
        for _ in 0..count(reader, MEMBERS_MAX, "number of members")? {
            self.members.push(MemberEntry::read(reader)?);
        }
        for _ in 0..count(reader, ACK_OVERRIDES_MAX, "number of ack sets")? {
            self.ack_overrides.push(AckOverride::read(reader)?);
        }
        let mut sealed = Vec::new();
        for _ in 0..count(reader, CHECKPOINTS_MAX, "number of checkpoints")? {
            sealed.push(bytes(reader, SEALED_LEN_MAX, "checkpoint pointer")?.to_vec());
        }
        if !reader.rest().is_empty() {
            let count = count(reader, BEHIND_MAX, "number of segments that are behind")?;
            ensure(count > 0, "number of segments that are behind")?;
            for _ in 0..count {
                self.behind.push((SegmentId(reader.u64()?), reader.u64()?));
            }
        }
        Ok(sealed)
    }

    /// What must hold between the fields, before writing and after reading.
    fn check(&self) -> Result<(), SuperblockError> {
        let plain = |text: &str| !text.chars().any(char::is_control);
        ensure(self.label.len() <= LABEL_LEN_MAX && plain(&self.label), "label")?;
        ensure(self.host.len() <= HOST_LEN_MAX && plain(&self.host), "host")?;
        ensure(self.state_dir.len() <= PATH_LEN_MAX, "state directory")?;
        ensure(self.copies >= 1, "copies")?;
        ensure(CHUNK_BITS.contains(&self.chunk_bits), "chunk size")?;
        ensure(usize::from(self.min_ack.unwrap_or(1)) <= self.geometry.total(), "min_ack")?;
        ensure(self.min_ack != Some(0), "min_ack")?;
        ensure(self.key_slots.len() <= KEY_SLOTS_MAX, "number of key slots")?;
        ensure(self.members.len() <= MEMBERS_MAX, "number of members")?;
        ensure(self.ack_overrides.len() <= ACK_OVERRIDES_MAX, "number of ack sets")?;
        ensure(self.checkpoints.len() <= CHECKPOINTS_MAX, "number of checkpoints")?;
        ensure(self.behind.len() <= BEHIND_MAX, "number of segments that are behind")?;
        for member in &self.members {
            ensure(member.path.len() <= PATH_LEN_MAX, "member path")?;
            ensure(member.domain.len() <= DOMAIN_LEN_MAX && plain(&member.domain), "failure domain")?;
        }
        let mut ids: Vec<_> = self.members.iter().map(|member| member.id).collect();
        ids.sort_unstable();
        ensure(ids.windows(2).all(|pair| pair[0] != pair[1]), "one member twice")?;
        ensure(ids.binary_search(&self.member).is_ok(), "a member that is not listed")
    }
}

impl MemberEntry {
    fn put(&self, out: &mut Vec<u8>) {
        out.put(&self.id.0);
        out.put_u8(self.state as u8);
        out.put_u8(0);
        put_bytes(out, self.domain.as_bytes());
        put_bytes(out, &self.path);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, SuperblockError> {
        let id = MemberId(reader.array()?);
        let state = match reader.u8()? {
            1 => MemberState::Active,
            2 => MemberState::Lost,
            3 => MemberState::Removed,
            _ => return Err(SuperblockError::Field("member state")),
        };
        ensure(reader.u8()? == 0, "reserved bytes")?;
        let domain = text(reader, DOMAIN_LEN_MAX, "failure domain")?;
        Ok(Self { id, state, domain, path: bytes(reader, PATH_LEN_MAX, "member path")?.to_vec() })
    }
}

impl AckOverride {
    fn put(&self, out: &mut Vec<u8>) {
        out.put_u64(self.term.0);
        out.put_u64(self.generation.0);
        out.put_u64(self.segment.0);
        out.put_u64(self.ack_set);
        out.put_u16(self.part);
        out.put(&[0; 6]);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, SuperblockError> {
        let (term, generation) = (Term(reader.u64()?), Generation(reader.u64()?));
        let (segment, ack_set, part) = (SegmentId(reader.u64()?), reader.u64()?, reader.u16()?);
        ensure(reader.array()? == [0; 6], "reserved bytes")?;
        Ok(Self { term, generation, part, segment, ack_set })
    }
}
