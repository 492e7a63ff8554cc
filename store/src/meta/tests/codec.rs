//! Bytes of row changes: what is written is read again, and hostile bytes are refused without harm.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::meta::codec::{CHANGES_HEADER_LEN, decode_changes, encode_changes};

fn number() -> impl Strategy<Value = u64> {
    0..=i64::MAX as u64
}

fn generation() -> impl Strategy<Value = Generation> {
    number().prop_map(Generation)
}

fn name() -> impl Strategy<Value = Box<[u8]>> {
    vec(1u8..=255, 1..=255).prop_map(|mut name: Vec<u8>| {
        name.iter_mut().filter(|byte| matches!(**byte, b'/' | b'.')).for_each(|byte| *byte = b'_');
        name.into()
    })
}

fn bytes(max: usize) -> impl Strategy<Value = Box<[u8]>> {
    vec(any::<u8>(), 0..max).prop_map(Into::into)
}

fn kind() -> impl Strategy<Value = FileKind> {
    (1u8..=7).prop_map(|kind| FileKind::from_number(kind).unwrap())
}

fn block_state() -> impl Strategy<Value = BlockState> {
    (0u8..=2).prop_map(|state| BlockState::from_number(state).unwrap())
}

prop_compose! {
    fn inode()(
        numbers in vec(number(), 7),
        kind in kind(),
        small in (0u16..0o10000, any::<u32>(), any::<u32>(), any::<u32>(), any::<u32>(), any::<u32>(), 12u8..=20),
        times in any::<[i64; 4]>(),
        inline in proptest::option::of(bytes(INLINE_MAX)),
        ino_generation in any::<u32>(),
    ) -> InodeRow {
        let (perm, uid, gid, nlink, rdev, flags, chunk_bits) = small;
        InodeRow {
            ino: Ino(numbers[0]),
            version: Version(numbers[1]),
            kind,
            perm,
            uid,
            gid,
            nlink,
            rdev,
            size: numbers[2],
            atime_ns: times[0],
            mtime_ns: times[1],
            ctime_ns: times[2],
            btime_ns: times[3],
            data: DataId(numbers[3]),
            chunk_bits,
            flags,
            inline: inline.map(Into::into),
            ino_generation,
            allocated: numbers[4],
            parent: Ino(numbers[5]),
            since: Generation(numbers[6]),
        }
    }
}

prop_compose! {
    fn dentry()(n in vec(number(), 4), name in name(), kind in kind()) -> DentryRow {
        DentryRow { parent: Ino(n[0]), hash: n[1], name, ino: Ino(n[2]), kind, since: Generation(n[3]) }
    }
}

prop_compose! {
    fn extent()(n in vec(number(), 4), key in any::<[u8; 32]>()) -> ExtentRow {
        let [data, chunk, sequence, since] = n[..] else { unreachable!() };
        ExtentRow { data: DataId(data), chunk: ChunkNo(chunk), key: BlockKey(key), sequence, since: Generation(since) }
    }
}

prop_compose! {
    fn xattr()(n in vec(number(), 2), name in name(), value in bytes(300)) -> XattrRow {
        XattrRow { ino: Ino(n[0]), name, value, since: Generation(n[1]) }
    }
}

prop_compose! {
    fn block()(
        id in any::<[u8; 16]>(),
        digest in any::<[u8; 32]>(),
        domain in any::<u64>(),
        words in any::<[u32; 5]>(),
        small in any::<(u16, u16, u8)>(),
        n in vec(number(), 5),
        state in block_state(),
    ) -> BlockRow {
        BlockRow {
            id: BlockId(id),
            digest: ContentDigest(digest),
            domain,
            epoch: words[0],
            index: small.0,
            segment: SegmentId(n[0]),
            offset: n[1],
            record_len: words[1],
            stripe_blocks: small.1,
            message_offset: words[2],
            sealed_len: words[3],
            plain_len: words[4],
            refs: n[2],
            state,
            state_since: Generation(n[3]),
            verified: false,
            codec: small.2,
            since: Generation(n[4]),
        }
    }
}

prop_compose! {
    fn segment()(
        n in vec(number(), 4),
        incarnation in any::<[u8; 16]>(),
        (data, parity) in (1u8..30, 0u8..30),
        members in vec(proptest::option::of(1u8..), 60),
        state in 1u8..=3,
    ) -> SegmentRow {
        let slots = members[..usize::from(data + parity)].iter().map(|slot| slot.map(|byte| MemberId([byte; 16])));
        SegmentRow {
            id: SegmentId(n[0]),
            incarnation: Incarnation(incarnation),
            data,
            parity,
            slots: slots.collect(),
            capacity: n[1],
            tail: n[2],
            state: SegmentState::from_number(state).unwrap(),
            since: Generation(n[3]),
        }
    }
}

fn rest() -> impl Strategy<Value = RowChange> {
    (vec(number(), 7), name(), bytes(300), any::<i64>(), 0u8..17, 1u8..=6).prop_map(
        |(n, name, bytes, time_ns, which, shelf)| {
            let (data, chunk, since) = (DataId(n[0]), ChunkNo(n[1]), Generation(n[2]));
            let shelf = Shelf::from_number(shelf).unwrap();
            match which {
                0 => RowChange::DelInode { ino: Ino(n[0]), at: since },
                1 => RowChange::DelDentry { parent: Ino(n[0]), hash: n[1], name, at: since },
                2 => RowChange::DelExtents { data, from: chunk, to: ChunkNo(n[3]), below: n[4], at: since },
                3 => RowChange::DelXattr { ino: Ino(n[0]), name, at: since },
                4 => RowChange::DelBlock(BlockId([n[0] as u8; 16])),
                5 => RowChange::DelSegment(SegmentId(n[0])),
                6 => RowChange::PutPatch(PatchRow {
                    data,
                    chunk,
                    sequence: n[3],
                    ino: Ino(n[5]),
                    offset: n[4] as u32,
                    bytes,
                    since,
                }),
                7 => RowChange::DelPatches { data, from: chunk, to: ChunkNo(n[3]), through: n[4], at: since },
                8 => RowChange::PutLink(RangeLinkRow {
                    data,
                    chunk,
                    count: n[3],
                    source: DataId(n[4]),
                    source_chunk: ChunkNo(n[5]),
                    source_generation: Generation(n[6]),
                    since,
                }),
                9 => RowChange::DelLink { data, chunk },
                10 => RowChange::PutCut(CutRow {
                    data,
                    sequence: n[3],
                    from: chunk,
                    to: ChunkNo(n[4]),
                    ino: Ino(n[5]),
                    since,
                }),
                11 => RowChange::DelCut { data, sequence: n[3] },
                12 => RowChange::PutGeneration(GenerationRow { generation: since, time_ns }),
                13 => RowChange::DelGeneration(since),
                14 => RowChange::PutSnapshot(SnapshotRow { name, generation: Generation(n[0]), time_ns, since }),
                15 => RowChange::DelSnapshot { name },
                _ if n[0] % 2 == 0 => RowChange::PutShelf(ShelfRow { shelf, key: name, value: bytes, since }),
                _ => RowChange::DelShelf { shelf, key: name },
            }
        },
    )
}

fn past() -> impl Strategy<Value = RowChange> {
    let past = prop_oneof![
        inode().prop_map(Past::Inode),
        dentry().prop_map(Past::Dentry),
        extent().prop_map(Past::Extent),
        xattr().prop_map(Past::Xattr),
        extent().prop_map(|row| {
            let (data, chunk, bytes) = (row.data, row.chunk, row.key.0[..7].into());
            Past::Patch(PatchRow {
                data,
                chunk,
                sequence: row.sequence,
                ino: Ino(9),
                offset: 5,
                bytes,
                since: row.since,
            })
        }),
    ];
    let key = prop_oneof![
        inode().prop_map(|row| PastKey::Inode(row.ino, row.version, row.since)),
        dentry().prop_map(|row| PastKey::Dentry(row.parent, row.hash, row.name, row.since)),
        extent().prop_map(|row| PastKey::Extent(row.data, row.chunk, row.since)),
        xattr().prop_map(|row| PastKey::Xattr(row.ino, row.name, row.since)),
        extent().prop_map(|row| PastKey::Patch(row.data, row.chunk, row.sequence)),
    ];
    prop_oneof![
        (past, generation()).prop_map(|(past, until)| RowChange::PutPast { past, until }),
        key.prop_map(RowChange::DelPast),
    ]
}

fn change() -> impl Strategy<Value = RowChange> {
    prop_oneof![
        inode().prop_map(RowChange::PutInode),
        dentry().prop_map(RowChange::PutDentry),
        extent().prop_map(RowChange::PutExtent),
        xattr().prop_map(RowChange::PutXattr),
        block().prop_map(RowChange::PutBlock),
        segment().prop_map(RowChange::PutSegment),
        block().prop_map(|row| RowChange::SetRefs {
            id: row.id,
            refs: row.refs,
            state: row.state,
            state_since: row.state_since
        }),
        past(),
        rest(),
    ]
}

proptest! {
    #[test]
    fn every_change_survives_its_bytes(changes in vec(change(), 0..20)) {
        let bytes = encode_changes(&changes);
        prop_assert_eq!(decode_changes(&bytes).unwrap(), changes);
    }

    #[test]
    fn what_breaks_off_is_refused(changes in vec(change(), 1..4), cut in any::<prop::sample::Index>()) {
        let bytes = encode_changes(&changes);
        let cut = cut.index(bytes.len());
        // Between two changes it is a shorter sequence; anywhere else it is none.
        if let Ok(fewer) = decode_changes(&bytes[..cut]) {
            prop_assert_eq!(&fewer[..], &changes[..fewer.len()]);
            prop_assert!(fewer.len() < changes.len());
        }
    }

    #[test]
    fn changed_and_random_bytes_never_panic(
        changes in vec(change(), 1..4),
        flips in vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        noise in vec(any::<u8>(), 0..400),
    ) {
        let mut bytes = encode_changes(&changes);
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(changes) = decode_changes(&bytes) {
            prop_assert_eq!(decode_changes(&encode_changes(&changes)).unwrap(), changes);
        }
        let mut hostile = encode_changes(&[]);
        hostile.extend_from_slice(&noise);
        let _ = decode_changes(&hostile);
        let _ = decode_changes(&noise);
    }
}

#[test]
fn the_bytes_of_a_name_are_as_the_format_says() {
    let row = DentryRow {
        parent: Ino(1),
        hash: 0x0102,
        name: b"ab"[..].into(),
        ino: Ino(2),
        kind: FileKind::File,
        since: Generation(3),
    };
    let bytes = encode_changes(&[RowChange::PutDentry(row)]);
    let wanted = [
        &[1, 0, 3][..],
        &1u64.to_le_bytes(),
        &0x0102u64.to_le_bytes(),
        &[2, b'a', b'b'],
        &2u64.to_le_bytes(),
        &[1],
        &3u64.to_le_bytes(),
    ]
    .concat();
    assert_eq!(bytes, wanted);
    assert_eq!(encode_changes(&[]).len(), CHANGES_HEADER_LEN);
    let error = decode_changes(&bytes[..10]).unwrap_err().to_string();
    assert!(error.contains("breaks off"), "{error}");
    assert!(decode_changes(&[2, 0]).unwrap_err().to_string().contains("version"));
}
