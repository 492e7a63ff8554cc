//! From a sandbox that waits to the program in it: what its init does before the process that becomes the program does the
//! rest ([`super::start`]).
//!
//! Should a path of the volume hang here, the daemon counts time and ends the sandbox from outside. Order: views while
//! there are still rights to mount, the cover over the volume, then the rules for files.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use super::beneath;
use super::landlock::{self, Rules};
use super::message::{Failure, Run};
use super::root::{Built, VOLUME_INSIDE, text};
use super::start::{Order, Started, Starter};
use crate::copies;
use crate::plan::{View, ViewAccess};
use crate::sys;

/// Descriptors that are closed later at most: many views have as many.
const USED_MAX: usize = 16;

/// What is made ready while a sandbox waits for its run.
pub(crate) struct Ready {
    built: Built,
    volume: OwnedFd,
    root: OwnedFd,
    /// What every run of the template may do with files; none if the kernel has no Landlock.
    rules: Option<Rules>,
    /// The root directory may be written to: it is a private layer.
    writable_root: bool,
    starter: Starter,
}

impl Ready {
    /// In the sandbox's own root.
    pub fn new(built: Built, writable_root: bool) -> Result<Self, Failure> {
        let failed = || Failure::step("Landlock rules");
        let rules = Rules::new().map_err(failed())?;
        if let Some(rules) = &rules {
            common(rules, writable_root).map_err(failed())?;
        }
        lock_rights().map_err(Failure::step("giving up rights"))?;
        let open = |path: &str| text(Path::new(path)).and_then(|path| sys::open_path(&path));
        let volume = open(VOLUME_INSIDE).map_err(Failure::step("the volume's root"))?;
        let root = open("/").map_err(Failure::step("the root"))?;
        Ok(Self { built, volume, root, rules, writable_root, starter: Starter::new()? })
    }
}

fn common(rules: &Rules, writable_root: bool) -> io::Result<()> {
    let open = |path: &str| text(Path::new(path)).and_then(|path| sys::open_path(&path));
    let root_access = if writable_root { landlock::LOOK | landlock::CHANGE } else { landlock::LOOK };
    rules.below(open("/")?, root_access)?;
    rules.below(open("/tmp")?, landlock::LOOK | landlock::CHANGE)?;
    for device in ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"] {
        rules.file(open(device)?, landlock::DEVICE)?;
    }
    rules.below(open("/dev/pts")?, landlock::DEVICE | landlock::LOOK)
}

/// What the program is started with beside the message.
pub(crate) struct With {
    /// Standard descriptors; missing ones become /dev/null.
    pub streams: [Option<OwnedFd>; 3],
    pub credential: Option<OwnedFd>,
    /// Terminal to be the controlling one.
    pub terminal: Option<OwnedFd>,
}

/// Have the program started. When this returns it has its descriptors, and this process has none of them any more.
pub(crate) fn launch(run: &Arc<Run>, with: With, ready: Ready) -> Result<Started, Failure> {
    let Ready { built, volume, root, rules, writable_root, starter } = ready;
    let mut used = Vec::new();
    let writable = views(run, &root, &volume, &built, &mut used)?;
    directory(&root, &run.directory)?;
    seal_root(&root, writable_root)?;
    files(rules.as_ref(), &with, &writable)?;
    // What was opened to mount by is closed when the program runs: nobody waits for that then. The process that becomes the
    // program has none of it once it has.
    let started = starter.start(Order::new(run, &with, rules.as_ref())?);
    drop((built, volume, root, writable, used));
    started
}

/// Show what the plan names, and nothing else of the volume. Returns where writing is allowed; `used` gets what is of no more
/// use.
fn views(
    run: &Run,
    root: &OwnedFd,
    volume: &OwnedFd,
    built: &Built,
    used: &mut Vec<OwnedFd>,
) -> Result<Vec<OwnedFd>, Failure> {
    let refused = |view: &View| {
        let path = view.source.display().to_string();
        move |error: io::Error| {
            let code = if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 };
            let errno = error.raw_os_error().unwrap_or(0);
            let why = if errno == libc::ELOOP { " is or passes a symbolic link" } else { "" };
            Failure { code, step: format!("{path}{why}"), errno }
        }
    };
    // What lies above is mounted first.
    let mut views: Vec<&View> = run.views.iter().collect();
    views.sort_by_key(|view| view.at.components().count());
    views.push(&run.program);
    let mut writable = Vec::new();
    for view in views {
        let path = text(&view.source).map_err(refused(view))?;
        let copy = if std::ptr::eq(view, &run.program) { copy(run, built.copies.as_ref()) } else { None };
        let is_copy = copy.is_some();
        let found = match copy {
            Some(copy) => copy,
            None => sys::open_beneath(volume, &path, libc::O_PATH | libc::O_NOFOLLOW).map_err(refused(view))?,
        };
        let stat = nix::sys::stat::fstat(&found).map_err(io::Error::from).map_err(refused(view))?;
        let kind = stat.st_mode & libc::S_IFMT;
        if kind != libc::S_IFREG && kind != libc::S_IFDIR {
            let what = if kind == libc::S_IFLNK { "a symbolic link" } else { "neither a file nor a directory" };
            let step = format!("{} is {what}", view.source.display());
            return Err(Failure { code: 126, step, errno: 0 });
        }
        if view.ino.is_some_and(|ino| ino != stat.st_ino) && !is_copy {
            let step = format!("{} was replaced while the run was being prepared", view.source.display());
            return Err(Failure { code: 126, step, errno: 0 });
        }
        let at = || mount_point(root, view, kind == libc::S_IFDIR);
        if let ViewAccess::Stage(staging) = &view.access {
            overlay(volume, staging, &found, &at()?, view)?;
            // The overlay is on top now.
            writable.push(at()?);
            continue;
        }
        let tree = sys::open_tree(Some(found.as_fd()), c"", libc::OPEN_TREE_CLONE | libc::AT_EMPTY_PATH as u32)
            .map_err(refused(view))?;
        let write = view.access == ViewAccess::Write;
        let attributes = sys::MOUNT_NOSUID | sys::MOUNT_NODEV | if write { 0 } else { sys::MOUNT_RDONLY };
        sys::mount_setattr(&tree, false, attributes).map_err(refused(view))?;
        // Open to be written: closed before the root is made read-only.
        sys::move_mount_to(&tree, at()?).map_err(refused(view))?;
        if write {
            writable.push(tree);
        } else if used.len() < USED_MAX {
            used.extend([found, tree]);
        }
    }
    // From here on nobody gets at the volume's root any more: the cover cannot be taken off without the right to
    // unmount, and no program gets this process's descriptors.
    sys::move_mount_to(&built.cover, volume).map_err(Failure::step("covering the volume"))?;
    Ok(writable)
}

/// The copy that may be run instead of the program, unless it made room for others meanwhile.
fn copy(run: &Run, copies: Option<&OwnedFd>) -> Option<OwnedFd> {
    let copies = copies.filter(|_| run.copy != 0)?;
    sys::open_beneath(copies, &copies::name(run.copy), libc::O_PATH | libc::O_NOFOLLOW).ok()
}

/// A view whose changes go to a staging directory: an overlay of it over what the view shows.
fn overlay(volume: &OwnedFd, staging: &Path, lower: &OwnedFd, at: &OwnedFd, view: &View) -> Result<(), Failure> {
    let step = || Failure::step(format!("staging the outputs of {}", view.source.display()));
    let path = text(staging).map_err(step())?;
    let staging = sys::open_beneath(volume, &path, libc::O_PATH | libc::O_DIRECTORY).map_err(step())?;
    // By number: no path of a user's stands among the options. It is thrown away if the run fails, so that nothing in
    // it need be synced.
    let options = format!(
        "lowerdir=/proc/self/fd/{},upperdir=/proc/self/fd/{1}/upper,workdir=/proc/self/fd/{1}/work,userxattr,volatile",
        lower.as_raw_fd(),
        staging.as_raw_fd()
    );
    let flags = nix::mount::MsFlags::MS_NOSUID | nix::mount::MsFlags::MS_NODEV;
    super::root::mount_at(Some("overlay"), beneath::by_number(at), Some("overlay"), flags, &options).map_err(step())
}

/// The place in the sandbox where a view is mounted, made if need be. No link is followed on the way: a view shown
/// earlier may hold some.
fn mount_point(root: &OwnedFd, view: &View, is_directory: bool) -> Result<OwnedFd, Failure> {
    let cannot = || Failure::step(format!("{} cannot be shown in a sandbox at this path", view.at.display()));
    let relative = view.at.strip_prefix("/").unwrap_or(&view.at);
    let path = text(relative).map_err(cannot())?;
    // Mostly it is the program, in a directory that is there.
    if !is_directory && let Ok(made) = sys::open_beneath(root, &path, libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY) {
        return Ok(made);
    }
    let made = if is_directory { beneath::directory(root, relative) } else { beneath::file(root, relative) };
    made.map_err(cannot())
}

/// The caller's working directory exists, if only empty, so that relative paths mean what they meant.
fn directory(root: &OwnedFd, path: &Path) -> Result<(), Failure> {
    if path.is_dir() {
        return Ok(());
    }
    let made = beneath::directory(root, path).map(drop);
    made.map_err(Failure::step(format!("working directory {}", path.display())))
}

fn seal_root(root: &OwnedFd, writable: bool) -> Result<(), Failure> {
    let attributes = sys::MOUNT_NOSUID | sys::MOUNT_NODEV | if writable { 0 } else { sys::MOUNT_RDONLY };
    sys::mount_setattr(root, false, attributes).map_err(Failure::step("making the root read-only"))
}

/// Landlock's rules for what this run has beside others.
fn files(rules: Option<&Rules>, with: &With, writable: &[OwnedFd]) -> Result<(), Failure> {
    let failed = || Failure::step("Landlock rules");
    let Some(rules) = rules else {
        for stream in with.streams.iter().flatten() {
            if file_type(stream) == libc::S_IFREG {
                let step = "a standard stream is a file, and without Landlock it could be reopened for more; put a \
                            pipe between (`| cat`)";
                return Err(Failure { code: 126, step: step.into(), errno: 0 });
            }
        }
        return Ok(());
    };
    for view in writable {
        match file_type(view) {
            libc::S_IFDIR => rules.below(view, landlock::LOOK | landlock::CHANGE),
            _ => rules.file(view, landlock::LOOK | landlock::CHANGE),
        }
        .map_err(failed())?;
    }
    for stream in with.streams.iter().flatten() {
        let flags = nix::fcntl::fcntl(stream, nix::fcntl::FcntlArg::F_GETFL).map_err(io::Error::from);
        let flags = flags.map_err(failed())?;
        let access = landlock::of_stream(flags);
        match file_type(stream) {
            libc::S_IFREG => match rules.file(stream, access) {
                // A file in memory (memfd_create): Landlock knows no rule for it and forbids nothing. Open for both
                // directions it cannot be reopened for more.
                Err(error) if error.raw_os_error() == Some(libc::EBADFD) => {
                    if flags & libc::O_ACCMODE != libc::O_RDWR {
                        let step = "a standard stream is a file in memory and could be reopened for more; put a pipe \
                                    between (`| cat`)";
                        return Err(Failure { code: 126, step: step.into(), errno: 0 });
                    }
                }
                outcome => outcome.map_err(failed())?,
            },
            libc::S_IFCHR => rules.file(stream, access | landlock::IOCTL_DEV).map_err(failed())?,
            // Pipes and sockets have no path that Landlock knows.
            _ => {}
        }
    }
    Ok(())
}

fn file_type(fd: &OwnedFd) -> u32 {
    nix::sys::stat::fstat(fd).map_or(0, |stat| stat.st_mode & libc::S_IFMT)
}

/// Every way to get a capability at exec, locked, for this process and its children; it changes nothing until then.
fn lock_rights() -> io::Result<()> {
    /// NOROOT, NO_SETUID_FIXUP, KEEP_CAPS off, NO_CAP_AMBIENT_RAISE, each locked.
    const SECURE_BITS: u64 = 0b1110_1111;
    sys::prctl(libc::PR_SET_SECUREBITS, SECURE_BITS, 0)?;
    sys::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as u64, 0)?;
    // The kernel says EINVAL behind the last one it has.
    for capability in 0..64 {
        if sys::prctl(libc::PR_CAPBSET_DROP, capability, 0).is_err() {
            break;
        }
    }
    Ok(())
}
