//! The bytes of a fence; FORMAT.md section 9 owns them.
//!
//! Promises: decoding is bounded and checks a checksum without a key, a MAC with one.

use crate::backing::FENCE_DIR;
use crate::ids::{MemberId, Term, VolumeId};
use crate::superblock::{HOST_LEN_MAX, PATH_LEN_MAX};
use crate::wire::{Put, Reader, Short, Trailer, append_trailer, check_trailer};

const MAGIC: [u8; 8] = *b"brineFNC";
const FORMAT: u16 = 1;

/// Longest fence, bytes.
pub const FENCE_LEN_MAX: usize = 8 << 10;

/// Who took a term, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FenceRecord {
    /// The volume.
    pub volume: VolumeId,
    /// The term taken; also the file's name.
    pub term: Term,
    /// The member this file lies in.
    pub member: MemberId,
    /// When, nanoseconds since 1970 UTC.
    pub time_ns: i64,
    /// Tells two claims of one term apart, should they ever meet.
    pub random: [u8; 16],
    /// Host name, at most 255 bytes of UTF-8.
    pub host: String,
    /// The writer's state directory, at most 4096 bytes.
    pub state_dir: Vec<u8>,
}

/// Why a fence does not decode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FenceError {
    /// Not a fence, cut short, or damaged.
    #[error("no sound fence: {0}")]
    Damaged(&'static str),
    /// Written by a newer version.
    #[error("fence of format {0}, which this version does not know; use a newer one")]
    Version(u16),
    /// Not made with this volume's key.
    #[error("the MAC does not hold: the fence was forged or is of another volume")]
    Mac,
}

impl From<Short> for FenceError {
    fn from(_: Short) -> Self {
        Self::Damaged("too short")
    }
}

/// Path of a term's fence in a member: `fence/` and sixteen hexadecimal digits.
pub fn fence_file(term: Term) -> String {
    format!("{FENCE_DIR}/{:016x}", term.0)
}

/// The term of a file in the fence directory; `None` if it is no fence's name.
pub fn fence_term(name: &str) -> Option<Term> {
    let digits = name.len() == 16 && name.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
    if !digits {
        return None;
    }
    u64::from_str_radix(name, 16).ok().map(Term)
}

impl FenceRecord {
    /// The file's bytes.
    ///
    /// # Panics
    /// If host or state directory are too long; decoding would refuse the same.
    pub fn encode(&self, mac_key: &[u8; 32]) -> Vec<u8> {
        assert!(self.host.len() <= HOST_LEN_MAX && self.state_dir.len() <= PATH_LEN_MAX, "fence fields too long");
        let mut out = Vec::with_capacity(512);
        out.put(&MAGIC);
        out.put_u16(FORMAT);
        out.put(&[0; 6]);
        out.put(&self.volume.0);
        out.put(&self.member.0);
        out.put_u64(self.term.0);
        out.put_i64(self.time_ns);
        out.put(&self.random);
        out.put_u16(self.host.len() as u16);
        out.put(self.host.as_bytes());
        out.put_u16(self.state_dir.len() as u16);
        out.put(&self.state_dir);
        append_trailer(&mut out, 0, mac_key);
        out
    }

    /// Reads a fence file's bytes and verifies their checksum.
    pub fn decode(bytes: &[u8]) -> Result<UnverifiedFence, FenceError> {
        if bytes.len() > FENCE_LEN_MAX {
            return Err(FenceError::Damaged("too long"));
        }
        let (body, trailer) = check_trailer(bytes).ok_or(FenceError::Damaged("the checksum does not hold"))?;
        let mut reader = Reader::new(body);
        if reader.array()? != MAGIC {
            return Err(FenceError::Damaged("other bytes"));
        }
        let format = reader.u16()?;
        if format != FORMAT {
            return Err(FenceError::Version(format));
        }
        if reader.array()? != [0; 6] {
            return Err(FenceError::Damaged("reserved bytes"));
        }
        let (volume, member) = (VolumeId(reader.array()?), MemberId(reader.array()?));
        let (term, time_ns, random) = (Term(reader.u64()?), reader.i64()?, reader.array()?);
        let host_len = usize::from(reader.u16()?);
        let host =
            std::str::from_utf8(reader.take(host_len)?).map_err(|_| FenceError::Damaged("host name"))?.to_owned();
        let state_len = usize::from(reader.u16()?);
        let state_dir = reader.take(state_len)?.to_vec();
        if host_len > HOST_LEN_MAX || state_len > PATH_LEN_MAX || !reader.rest().is_empty() {
            return Err(FenceError::Damaged("lengths"));
        }
        let fence = Self { volume, term, member, time_ns, random, host, state_dir };
        Ok(UnverifiedFence { fence, trailer })
    }
}

/// A fence whose checksum holds. Who wrote it is not known until [`UnverifiedFence::verify`].
#[derive(Clone, Debug)]
pub struct UnverifiedFence {
    fence: FenceRecord,
    trailer: Trailer,
}

impl UnverifiedFence {
    /// The fence, if it was written with this key; else [`FenceError::Mac`].
    pub fn verify(self, mac_key: &[u8; 32]) -> Result<FenceRecord, FenceError> {
        if self.trailer.verify(mac_key) { Ok(self.fence) } else { Err(FenceError::Mac) }
    }

    /// The fence as it stands, for messages.
    pub fn unauthenticated(&self) -> &FenceRecord {
        &self.fence
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: [u8; 32] = [0x55; 32];

    fn fence() -> FenceRecord {
        FenceRecord {
            volume: VolumeId([0x11; 16]),
            term: Term(0x1a),
            member: MemberId([0x22; 16]),
            time_ns: 1_700_000_000_000_000_000,
            random: [0x33; 16],
            host: "salt".into(),
            state_dir: b"/var/lib/brine/\xff".to_vec(),
        }
    }

    #[test]
    fn fences_round_trip_and_are_pinned() {
        let bytes = fence().encode(&KEY);
        let unverified = FenceRecord::decode(&bytes).unwrap();
        assert_eq!(unverified.unauthenticated(), &fence());
        assert_eq!(unverified.clone().verify(&[0; 32]), Err(FenceError::Mac));
        assert_eq!(unverified.verify(&KEY).unwrap(), fence());
        assert_eq!(
            blake3::hash(&bytes).to_hex().as_str(),
            "a9969276ad156ceab60fd58043dea271042b46d7bdff9f64528a76e18b041826"
        );
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(FenceRecord::decode(&bad).is_err(), "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert!(FenceRecord::decode(&bytes[..len]).is_err());
        }
        let longest = FenceRecord { host: "h".repeat(255), state_dir: vec![b's'; 4096], ..fence() };
        assert_eq!(FenceRecord::decode(&longest.encode(&KEY)).unwrap().verify(&KEY), Ok(longest));
    }

    #[test]
    fn names_and_terms() {
        assert_eq!(fence_file(Term(0x1a)), "fence/000000000000001a");
        assert_eq!(fence_term("000000000000001a"), Some(Term(0x1a)));
        for name in ["", "1a", "000000000000001A", "+00000000000001a", "000000000000001a0"] {
            assert_eq!(fence_term(name), None, "{name}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = FenceRecord::decode(&bytes);
        }

        #[test]
        fn no_signed_mutation_panics(edits in proptest::collection::vec((0usize..100, any::<u8>()), 0..4)) {
            let mut bytes = fence().encode(&KEY);
            bytes.truncate(bytes.len() - crate::wire::TRAILER_LEN);
            let len = bytes.len();
            for (at, value) in edits {
                bytes[at % len] = value;
            }
            append_trailer(&mut bytes, 0, &KEY);
            if let Ok(fence) = FenceRecord::decode(&bytes) {
                prop_assert_eq!(fence.verify(&KEY).unwrap().encode(&KEY), bytes);
            }
        }
    }
}
