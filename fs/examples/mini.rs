//! Scratch.
use std::path::PathBuf;
use brine_store::volume::*;
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let secret = || zeroize::Zeroizing::new(b"x".to_vec());
    match a[1].as_str() {
        "format" => {
            let f = format(&FormatOptions { directories: a[3..].iter().map(PathBuf::from).collect(), geometry: None, secret: NewSecret::Passphrase(secret()), state_dir: Some(PathBuf::from(&a[2])), copies: 1, domain: DomainPolicy::Volume, codec: Codec::None, chunk_bits: 17, label: String::new(), kdf: KdfCost::Fast }).unwrap();
            println!("{f:?}");
        }
        "mount" => {
            let v = Volume::open(OpenOptions { sources: vec![PathBuf::from(&a[2])], unlock: Unlock::Passphrase(secret()), state_dir: None, read_only: false, hedge: Hedge::Adaptive, min_ack: None, cache_bytes: 64 << 20, copies: None, epoch: None, domain: None, codec: None, use_member: vec![] }).unwrap();
            eprintln!("{:?}", v.warnings());
            let vfs = brine_fs::vfs::Vfs::new(v, brine_fs::vfs::VfsOptions::default()).unwrap();
            brine_fs::fuse::serve(vfs, &brine_fs::fuse::FuseConfig::new(&a[3], "brine"), || eprintln!("ready")).unwrap();
        }
        _ => panic!(),
    }
}
