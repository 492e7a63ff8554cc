//! `check` sees damage wherever it is, and only where it counts.

use std::os::unix::fs::FileExt;

use super::*;
use crate::blocks::place_of;
use crate::meta::rows::BlockState;
use crate::stripes::StripePlace;

fn file_of(volume: &Volume, place: StripePlace, slot: usize) -> PathBuf {
    let member = volume.blocks().segment_info(place.segment).unwrap().slots[slot].unwrap();
    let dir = volume.set.get(&member).unwrap().path().to_path_buf();
    dir.join(format!("segments/{:02x}/{:016x}.seg", place.segment.0 & 0xff, place.segment.0))
}

/// Flip a bit near the end of what a slot holds of a stripe: its shard, or the copy of a record.
pub(super) fn flip(volume: &Volume, place: StripePlace, slot: usize) {
    let header = volume.blocks().stripes().header_at(
        place.segment,
        place.offset,
        &volume.blocks().segment_info(place.segment).unwrap(),
    );
    let header = header.unwrap();
    let end = place.offset + header.encode(&[0; 32]).len() as u64 + u64::from(header.shard_len);
    let file = std::fs::OpenOptions::new().read(true).write(true).open(file_of(volume, place, slot)).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, end - 1).unwrap();
    file.write_all_at(&[byte[0] ^ 4], end - 1).unwrap();
}

fn checked(volume: &Volume) -> crate::check::CheckReport {
    check(volume, &CheckOptions::default(), &Silent).unwrap()
}

/// A volume with a former state, checkpoints and a log since.
fn volume_of(scratch: &Scratch) -> Arc<Volume> {
    scratch.format_kept(6);
    let volume = scratch.open_with(OpenOptions { cache_bytes: 0, ..scratch.options() });
    let attr = write(&volume, "file", &noise(80, 200_000));
    volume.commit(&NothingDirty).unwrap();
    put(&volume, &attr, &noise(81, 200_000));
    volume.commit(&NothingDirty).unwrap();
    volume.checkpoint().unwrap();
    write(&volume, "later", &noise(82, 300_000));
    volume.commit(&NothingDirty).unwrap();
    assert!(checked(&volume).healthy, "{:?}", checked(&volume));
    volume
}

/// Places of: a block of the present, one of a former state only, a part of a checkpoint, a commit record since.
fn places(volume: &Volume) -> Vec<(&'static str, StripePlace)> {
    let state = volume.meta().reader().unwrap();
    let past = state.only_in_history().unwrap().0;
    let (mut present, mut former) = (None, None);
    state
        .for_each_block(|row| {
            assert_eq!(row.state, BlockState::Live);
            let which = if past.contains(&row.id) { &mut former } else { &mut present };
            *which = Some(place_of(row));
            Ok(())
        })
        .unwrap();
    let (segment, stripes) = volume.image_stripes(None).unwrap().stripes.into_iter().next().unwrap();
    let image = StripePlace { segment, offset: stripes[0].0, record_len: stripes[0].1 as u32 };
    let oldest = volume.oldest_checkpoint().unwrap();
    let mut commits = Vec::new();
    for (segment, _) in volume.set.members()[0].list_segments().unwrap() {
        let info = volume.blocks().segment_info(segment).unwrap();
        let records = volume.blocks().stripes().records(segment, 0, &info);
        commits.extend(records.into_iter().filter(|(_, header)| header.commit.is_some_and(|c| c.generation > oldest)));
    }
    let commit = commits[0].0;
    vec![("present", present.unwrap()), ("former", former.unwrap()), ("image", image), ("commit", commit)]
}

#[test]
fn every_damaged_shard_that_counts_is_seen_and_healed() {
    let scratch = Scratch::new("checked");
    let volume = volume_of(&scratch);
    // It would heal beside the checks, which may count what they saw before and what they see after.
    let housekeeper = volume.housekeeper.lock().take();
    housekeeper.unwrap().stop();
    for (what, place) in places(&volume) {
        let info = volume.blocks().segment_info(place.segment).unwrap();
        let survey = volume.blocks().stripes().survey(place, &info);
        for slot in survey.good.iter().map(|shard| usize::from(shard.index.0)) {
            let before = volume.status().unwrap().damage.shards_bad;
            flip(&volume, place, slot);
            let report = checked(&volume);
            assert!(!report.healthy && report.shards_bad == 1, "{what}, slot {slot}: {report:?}");
            assert_eq!(report.blocks_lost, 0, "{what}, slot {slot}: {report:?}");
            assert_eq!(volume.status().unwrap().damage.shards_bad, before + 1, "{what}, slot {slot}: not counted once");
            let healed = heal(&volume, &Silent).unwrap();
            assert!(healed.healed, "{what}, slot {slot}: {healed:?}");
            assert!(checked(&volume).healthy, "{what}, slot {slot}");
            assert_eq!(volume.status().unwrap().health, "healthy", "{what}, slot {slot}");
        }
    }
    volume.close(&NothingDirty).unwrap();
}

#[test]
fn what_is_lost_is_told_apart() {
    for (which, expected) in ["present", "former", "image", "commit"].into_iter().zip([
        "3 good shards of the 4 needed",
        "(former states)",
        "checkpoint",
        "commit record of generation",
    ]) {
        let scratch = Scratch::new(&format!("lost-{which}"));
        let volume = volume_of(&scratch);
        let place = places(&volume).into_iter().find(|(what, _)| *what == which).unwrap().1;
        let info = volume.blocks().segment_info(place.segment).unwrap();
        let survey = volume.blocks().stripes().survey(place, &info);
        let copy = survey.good[0].header.kind.is_copy();
        let slots = survey.good.iter().map(|shard| usize::from(shard.index.0));
        slots.take(if copy { usize::MAX } else { 3 }).for_each(|slot| flip(&volume, place, slot));
        let report = checked(&volume);
        let said = format!("{:?} {:?}", report.damaged, report.tables);
        assert!(!report.healthy && said.contains(expected), "{which}: {said}");
        assert_eq!(report.blocks_lost > 0, which == "present" || which == "former", "{which}: {report:?}");
        if which == "former" {
            let healed = heal(&volume, &Silent).unwrap();
            assert_eq!((healed.stripes_lost, healed.healed), (1, false), "check and heal agree");
        }
        drop(volume);
    }
}
