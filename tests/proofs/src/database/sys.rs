//! A layer between SQLite and the system's files (a "VFS" in its words) that tells a [`Watcher`] of every change, made
//! the default of this process. All else passes through.

use std::ffi::{CStr, OsStr, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Arc, Once};

use parking_lot::Mutex;
use rusqlite::ffi;

use super::{FileCall, Watcher};

static REAL: AtomicPtr<ffi::sqlite3_vfs> = AtomicPtr::new(std::ptr::null_mut());
static WATCHED: Mutex<Vec<(PathBuf, Arc<dyn Watcher>)>> = Mutex::new(Vec::new());

/// A directory that is watched, until this is dropped. Files that are open then stay watched.
pub struct Watch(PathBuf);

/// Tell `watcher` of every change of SQLite's to files that are opened in `dir` from now on.
pub fn watch(dir: &Path, watcher: Arc<dyn Watcher>) -> Watch {
    register();
    WATCHED.lock().push((dir.to_owned(), watcher));
    Watch(dir.to_owned())
}

impl Drop for Watch {
    fn drop(&mut self) {
        WATCHED.lock().retain(|(dir, _)| *dir != self.0);
    }
}

/// A file of this layer; the system's file follows it in memory.
#[repr(C)]
struct Layer {
    base: ffi::sqlite3_file,
    /// Null if nobody watches.
    watched: *mut Watched,
}

struct Watched {
    watcher: Arc<dyn Watcher>,
    name: String,
}

fn register() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: the default VFS is a static of SQLite; a copy of it with other names and functions is leaked, so it
        // lives as long as SQLite may use it. SQLite is initialised by sqlite3_vfs_find.
        unsafe {
            let real = ffi::sqlite3_vfs_find(std::ptr::null());
            assert!(!real.is_null(), "SQLite has no default VFS");
            REAL.store(real, Ordering::Release);
            let mut layer = *real;
            layer.szOsFile = (*real).szOsFile + size_of::<Layer>() as c_int;
            layer.zName = c"brine-proofs".as_ptr();
            layer.pNext = std::ptr::null_mut();
            layer.xOpen = Some(open);
            layer.xDelete = Some(delete);
            let registered = ffi::sqlite3_vfs_register(Box::leak(Box::new(layer)), 1);
            assert_eq!(registered, ffi::SQLITE_OK, "registering the layer below SQLite");
        }
    });
}

fn watcher_of(path: &Path) -> Option<Watched> {
    let (dir, name) = (path.parent()?, path.file_name()?.to_str()?);
    let watched = WATCHED.lock();
    let (_, watcher) = watched.iter().find(|(watched, _)| watched == dir)?;
    Some(Watched { watcher: Arc::clone(watcher), name: name.to_owned() })
}

/// # Safety
/// `name` is null or a string.
unsafe fn path_of<'a>(name: *const c_char) -> Option<&'a Path> {
    if name.is_null() {
        return None;
    }
    // SAFETY: as the caller says.
    Some(Path::new(OsStr::from_bytes(unsafe { CStr::from_ptr(name) }.to_bytes())))
}

/// The system's file behind one of this layer.
///
/// # Safety
/// `file` was opened by [`open`].
unsafe fn real_of(file: *mut ffi::sqlite3_file) -> *mut ffi::sqlite3_file {
    // SAFETY: SQLite allocated szOsFile bytes: a Layer, and the system's file after it, at a multiple of 8.
    unsafe { file.byte_add(size_of::<Layer>()) }
}

/// # Safety
/// As SQLite calls xOpen.
unsafe extern "C" fn open(
    _: *mut ffi::sqlite3_vfs,
    name: ffi::sqlite3_filename,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    // SAFETY: `file` points to szOsFile bytes, and the arguments are passed on as they come to the function whose place
    // this one takes.
    unsafe {
        let real = REAL.load(Ordering::Acquire);
        let path = path_of(name);
        let watched = path.and_then(watcher_of);
        let is_new = path.is_some_and(|path| !path.exists());
        let layer = file.cast::<Layer>();
        (*layer).base.pMethods = std::ptr::null();
        (*layer).watched = std::ptr::null_mut();
        let inner = real_of(file);
        (*inner).pMethods = std::ptr::null();
        let mut do_open =
            || (*real).xOpen.map_or(ffi::SQLITE_CANTOPEN, |open| open(real, name, inner, flags, out_flags));
        let answer = match &watched {
            Some(watched) if is_new && flags & ffi::SQLITE_OPEN_CREATE != 0 => {
                watched.watcher.change(FileCall::Create(watched.name.clone()), &mut do_open)
            }
            _ => do_open(),
        };
        if !(*inner).pMethods.is_null() {
            (*layer).base.pMethods = &METHODS;
            if let Some(watched) = watched {
                (*layer).watched = Box::into_raw(Box::new(watched));
            }
        }
        answer
    }
}

/// # Safety
/// As SQLite calls xDelete.
unsafe extern "C" fn delete(_: *mut ffi::sqlite3_vfs, name: *const c_char, sync_dir: c_int) -> c_int {
    // SAFETY: the arguments are passed on as they come.
    unsafe {
        let real = REAL.load(Ordering::Acquire);
        let mut act = || (*real).xDelete.map_or(ffi::SQLITE_IOERR, |delete| delete(real, name, sync_dir));
        match path_of(name).and_then(watcher_of) {
            Some(watched) => watched.watcher.change(FileCall::Delete(watched.name.clone()), &mut act),
            None => act(),
        }
    }
}

/// Call a method of the system's file.
macro_rules! pass {
    ($file:expr, $method:ident $(, $arg:expr)*) => {{
        let inner = real_of($file);
        (*(*inner).pMethods).$method.map_or(ffi::SQLITE_IOERR, |method| method(inner $(, $arg)*))
    }};
}

/// A change: told to who watches, and done.
///
/// # Safety
/// `file` was opened by [`open`].
unsafe fn change(
    file: *mut ffi::sqlite3_file,
    call: impl FnOnce(String) -> FileCall,
    act: &mut dyn FnMut() -> c_int,
) -> c_int {
    // SAFETY: `watched` is null or came from Box::into_raw in `open` and is freed in `close` alone.
    match unsafe { (*file.cast::<Layer>()).watched.as_ref() } {
        Some(watched) => watched.watcher.change(call(watched.name.clone()), act),
        None => act(),
    }
}

/// # Safety
/// As SQLite calls it.
unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: `file` was opened by `open`, and is not used after this.
    unsafe {
        let answer = pass!(file, xClose);
        let layer = file.cast::<Layer>();
        if !(*layer).watched.is_null() {
            drop(Box::from_raw((*layer).watched));
            (*layer).watched = std::ptr::null_mut();
        }
        answer
    }
}

/// # Safety
/// As SQLite calls it.
unsafe extern "C" fn read(file: *mut ffi::sqlite3_file, to: *mut c_void, len: c_int, at: i64) -> c_int {
    // SAFETY: passed on as it comes.
    unsafe { pass!(file, xRead, to, len, at) }
}

/// # Safety
/// As SQLite calls it.
unsafe extern "C" fn write(file: *mut ffi::sqlite3_file, from: *const c_void, len: c_int, at: i64) -> c_int {
    // SAFETY: `from` points to `len` bytes; passed on as it comes.
    unsafe {
        let bytes: Arc<[u8]> = std::slice::from_raw_parts(from.cast::<u8>(), len as usize).into();
        change(file, |name| FileCall::Write(name, at as u64, bytes), &mut || pass!(file, xWrite, from, len, at))
    }
}

/// # Safety
/// As SQLite calls it.
unsafe extern "C" fn truncate(file: *mut ffi::sqlite3_file, len: i64) -> c_int {
    // SAFETY: passed on as it comes.
    unsafe { change(file, |name| FileCall::Truncate(name, len as u64), &mut || pass!(file, xTruncate, len)) }
}

/// # Safety
/// As SQLite calls it.
unsafe extern "C" fn sync(file: *mut ffi::sqlite3_file, flags: c_int) -> c_int {
    // SAFETY: passed on as it comes. The medium is a model: what is on it is decided by the watcher, so the system need
    // not be asked to wait for a real one.
    unsafe {
        match (*file.cast::<Layer>()).watched.as_ref() {
            Some(watched) => watched.watcher.change(FileCall::Sync(watched.name.clone()), &mut || ffi::SQLITE_OK),
            None => pass!(file, xSync, flags),
        }
    }
}

/// # Safety
/// As SQLite calls it.
unsafe extern "C" fn file_size(file: *mut ffi::sqlite3_file, len: *mut i64) -> c_int {
    // SAFETY: passed on as it comes.
    unsafe { pass!(file, xFileSize, len) }
}

/// # Safety
/// As SQLite calls it.
unsafe extern "C" fn lock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    // SAFETY: passed on as it comes.
    unsafe { pass!(file, xLock, level) }
}

/// # Safety
/// As SQLite calls it.
unsafe extern "C" fn unlock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    // SAFETY: passed on as it comes.
    unsafe { pass!(file, xUnlock, level) }
}

/// # Safety
/// As SQLite calls it.
unsafe extern "C" fn check_reserved_lock(file: *mut ffi::sqlite3_file, out: *mut c_int) -> c_int {
    // SAFETY: passed on as it comes.
    unsafe { pass!(file, xCheckReservedLock, out) }
}

/// # Safety
/// As SQLite calls it.
unsafe extern "C" fn file_control(file: *mut ffi::sqlite3_file, op: c_int, arg: *mut c_void) -> c_int {
    // SAFETY: passed on as it comes.
    unsafe { pass!(file, xFileControl, op, arg) }
}

/// # Safety
/// As SQLite calls it.
unsafe extern "C" fn sector_size(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: passed on as it comes.
    unsafe { pass!(file, xSectorSize) }
}

/// # Safety
/// As SQLite calls it.
unsafe extern "C" fn device_characteristics(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: passed on as it comes.
    unsafe { pass!(file, xDeviceCharacteristics) }
}

/// # Safety
/// As SQLite calls it.
unsafe extern "C" fn shm_map(
    file: *mut ffi::sqlite3_file,
    page: c_int,
    page_len: c_int,
    extend: c_int,
    out: *mut *mut c_void,
) -> c_int {
    // SAFETY: passed on as it comes.
    unsafe { pass!(file, xShmMap, page, page_len, extend, out) }
}

/// # Safety
/// As SQLite calls it.
unsafe extern "C" fn shm_lock(file: *mut ffi::sqlite3_file, offset: c_int, n: c_int, flags: c_int) -> c_int {
    // SAFETY: passed on as it comes.
    unsafe { pass!(file, xShmLock, offset, n, flags) }
}

/// # Safety
/// As SQLite calls it.
unsafe extern "C" fn shm_barrier(file: *mut ffi::sqlite3_file) {
    // SAFETY: passed on as it comes.
    unsafe {
        let inner = real_of(file);
        if let Some(barrier) = (*(*inner).pMethods).xShmBarrier {
            barrier(inner);
        }
    }
}

/// # Safety
/// As SQLite calls it.
unsafe extern "C" fn shm_unmap(file: *mut ffi::sqlite3_file, delete: c_int) -> c_int {
    // SAFETY: passed on as it comes.
    unsafe { pass!(file, xShmUnmap, delete) }
}

/// Version 2: with shared memory for the log, without mapping of the database.
static METHODS: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    iVersion: 2,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: Some(shm_map),
    xShmLock: Some(shm_lock),
    xShmBarrier: Some(shm_barrier),
    xShmUnmap: Some(shm_unmap),
    xFetch: None,
    xUnfetch: None,
};
