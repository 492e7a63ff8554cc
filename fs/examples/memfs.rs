use std::sync::Arc;
use brine_fs::{fuse, vfs};
fn main() {
    let mp = std::env::args().nth(1).unwrap();
    let miss = std::env::var("MISS").is_ok();
    let space = std::env::var("SPACE").ok().map_or(16i64 << 30, |s| s.parse().unwrap());
    let volume = brine_store::volume::Volume::in_memory(miss, space);
    let v = volume.clone();
    std::thread::spawn(move || loop { std::thread::sleep(std::time::Duration::from_millis(200)); v.fail_writes.store(std::path::Path::new("/tmp/memfs-fail").exists(), std::sync::atomic::Ordering::Relaxed); });
    let vfs = vfs::Vfs::new(volume.clone(), vfs::VfsOptions::default()).unwrap();
    let mut config = fuse::FuseConfig::new(mp, "memory");
    config.allow_other = true; config.extra = vec!["suid".into(), "dev".into()];
    config.threads = std::env::var("THREADS").ok().map_or(1, |s| s.parse().unwrap());
    let w = Arc::downgrade(&vfs);
    std::thread::spawn(move || { use std::io::BufRead; for _ in std::io::stdin().lock().lines() { if let Some(v) = w.upgrade() { eprintln!("{:?}", v.counts()); } } });
    println!("{:?}", fuse::serve(vfs, &config, || println!("ready")));
    println!("{}", volume.dump());
}
