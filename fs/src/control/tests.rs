use std::io::{BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use super::registry::{Registration, list_in};
use super::*;
use crate::exec_dir::request::{Asker, ExecRequest};
use crate::exit_code::{ExitCode, Failure};

/// A directory of a test, removed at its end.
struct Temp(PathBuf);

impl Temp {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("brine-control-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

struct Echo {
    unmounted: Arc<AtomicBool>,
}

impl Service for Echo {
    fn status(&self) -> Result<Value, Failure> {
        Ok(json!({ "health": "healthy" }))
    }

    fn sync(&self) -> Result<Value, Failure> {
        Err(Failure::new(ExitCode::Io, "disk gone"))
    }

    fn work(&self, _request: &Request, step: &(dyn Fn(Progress) -> bool + Sync)) -> Result<Value, Failure> {
        for done_bytes in 0..3 {
            assert!(step(Progress { phase: "blocks".into(), done_bytes, total_bytes: 3 }));
        }
        Ok(json!({ "healthy": true }))
    }

    fn family(&self, request: &Request, _step: &(dyn Fn(Progress) -> bool + Sync)) -> Result<Value, Failure> {
        Ok(json!({ "asked": format!("{request:?}") }))
    }

    fn exec(&self, _request: &ExecRequest, asker: Asker) -> Result<Value, Failure> {
        Ok(json!({ "uid": asker.uid, "commands": asker.commands }))
    }

    fn umount(&self, _lazy: bool) -> Result<(), Failure> {
        self.unmounted.store(true, Ordering::Release);
        Ok(())
    }
}

const PATIENCE: Option<Duration> = Some(Duration::from_secs(10));

fn ask(socket: &Path, request: &Request) -> Result<Value, Failure> {
    Client::connect(socket).unwrap().ask(request, PATIENCE, |_| {})
}

fn start(socket: &Path) -> (Server, Arc<AtomicBool>) {
    let unmounted = Arc::new(AtomicBool::new(false));
    (Server::start(socket, Arc::new(Echo { unmounted: Arc::clone(&unmounted) })).unwrap(), unmounted)
}

#[test]
fn requests_are_answered_with_progress_results_and_failures() {
    let temp = Temp::new("answers");
    let socket = temp.0.join(SOCKET_FILE);
    let (server, _) = start(&socket);
    assert_eq!(ask(&socket, &Request::Status).unwrap(), json!({ "health": "healthy" }));
    assert_eq!(ask(&socket, &Request::Sync).unwrap_err(), Failure::new(ExitCode::Io, "disk gone"));
    let mut steps = Vec::new();
    let check = Request::Check { path: None, repair: false };
    let report = Client::connect(&socket).unwrap().ask(&check, PATIENCE, |step| steps.push(step.done_bytes)).unwrap();
    assert_eq!((steps, report), (vec![0, 1, 2], json!({ "healthy": true })));
    drop(server);
    assert!(!socket.exists());
}

#[test]
fn families_have_requests_of_their_own() {
    let temp = Temp::new("families");
    let socket = temp.0.join(SOCKET_FILE);
    let (_server, _) = start(&socket);
    let request = Request::Versions { ask: VersionsRequest::CreateSnapshot { name: "before".into() } };
    let answer = ask(&socket, &request).unwrap();
    assert_eq!(answer, json!({ "asked": format!("{request:?}") }));
    let line = serde_json::to_string(&request).unwrap();
    assert_eq!(line, r#"{"command":"versions","ask":{"what":"create-snapshot","name":"before"}}"#);
}

#[test]
fn a_daemon_far_down_the_tree_can_be_reached() {
    let temp = Temp::new("deep");
    let deep = temp.0.join("d".repeat(100)).join("e".repeat(100));
    std::fs::create_dir_all(&deep).unwrap();
    let socket = deep.join(SOCKET_FILE);
    let (_server, _) = start(&socket);
    assert!(ask(&socket, &Request::Status).is_ok());
}

#[test]
fn umount_is_answered_when_the_volume_is_closed() {
    let temp = Temp::new("umount");
    let socket = temp.0.join(SOCKET_FILE);
    let (server, unmounted) = start(&socket);
    assert_eq!(ask(&socket, &Request::Umount { lazy: true }).unwrap(), json!({ "closed": false }));
    unmounted.store(false, Ordering::Release);
    std::thread::scope(|scope| {
        let asker = scope.spawn(|| ask(&socket, &Request::Umount { lazy: false }));
        while !unmounted.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        assert!(!asker.is_finished());
        server.finish(Err(Failure::new(ExitCode::Io, "not durable")));
        assert_eq!(asker.join().unwrap().unwrap_err().message(), "not durable");
    });
}

#[test]
fn what_is_no_request_is_refused() {
    let temp = Temp::new("refused");
    let socket = temp.0.join(SOCKET_FILE);
    let (_server, _) = start(&socket);
    let endless = format!("\"{}\"\n", "x".repeat(2 * REQUEST_LEN_MAX as usize));
    for text in [
        "\n",
        "{}\n",
        "{\"command\":\"explode\"}\n",
        "{\"command\":\"umount\",\"lazy\":true,\"more\":1}\n",
        "{\"command\":\"versions\",\"ask\":{\"what\":\"snapshot\"}}\n",
        "\u{0}\n",
        &endless,
    ] {
        let mut stream = UnixStream::connect(&socket).unwrap();
        // The daemon may hang up before it has read all of a line that is too long.
        let _ = stream.write_all(text.as_bytes());
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let answer = read_line(&mut BufReader::new(&stream), ANSWER_LEN_MAX);
        if let Ok(Some(answer)) = answer {
            assert!(answer.starts_with("{\"failed\":{\"code\":2,"), "{answer}");
        } else {
            assert_eq!(text, endless);
        }
    }
    assert!(ask(&socket, &Request::Status).is_ok());
}

#[test]
fn lines_are_bounded() {
    let read = |text: &str| read_line(&mut text.as_bytes(), 8);
    assert_eq!(read("").unwrap(), None);
    assert_eq!(read("1234567\nrest").unwrap().as_deref(), Some("1234567"));
    assert!(read("12345678\n").is_err());
    assert!(read("123").is_err());
    assert!(read_line(&mut &b"\xff\n"[..], 8).is_err());
}

fn entry(pid: u32, start_time: u64) -> Entry {
    Entry {
        volume: format!("{pid:032x}"),
        label: "photos".into(),
        mountpoint: "/mnt/photos".into(),
        source: "/disk1/brine".into(),
        pid,
        start_time,
        supervisor: None,
        socket: "/var/lib/brine/x/control.sock".into(),
        device: None,
    }
}

#[test]
fn living_daemons_are_listed_and_dead_ones_forgotten() {
    let temp = Temp::new("registry");
    let pid = std::process::id();
    let alive = entry(pid, start_time(pid).unwrap());
    let registration = Registration::new_in(&temp.0, &alive).unwrap();
    // The same number, another process.
    let reused = Entry { volume: "0".repeat(32), ..entry(pid, start_time(pid).unwrap() + 1) };
    let left = Registration::new_in(&temp.0, &reused).unwrap();
    std::fs::write(temp.0.join("broken.json"), "{").unwrap();
    assert_eq!(list_in(&temp.0), [alive]);
    assert_eq!(std::fs::read_dir(&temp.0).unwrap().count(), 2, "the entry of a process that ended is removed");
    drop(left);
    drop(registration);
    assert_eq!(list_in(&temp.0), []);
}

#[test]
fn processes_are_told_apart_by_start_time() {
    let own = start_time(std::process::id()).unwrap();
    assert!(process_alive(std::process::id(), own));
    assert!(!process_alive(std::process::id(), own + 1));
    assert_eq!(start_time(u32::MAX), None);
}

#[test]
fn a_public_socket_answers_about_runs_and_nothing_else() {
    let temp = Temp::new("public");
    let socket = temp.0.join("public.sock");
    let service = Arc::new(Echo { unmounted: Arc::default() });
    let _server = Server::start_public(&socket, service).unwrap();
    let answer = ask(&socket, &Request::Exec { request: ExecRequest::Ps }).unwrap();
    assert_eq!(answer["uid"], nix::unistd::geteuid().as_raw());
    assert_eq!(ask(&socket, &Request::Umount { lazy: false }).unwrap_err().code(), ExitCode::NotPermitted);
    assert_eq!(ask(&socket, &Request::Status).unwrap_err().code(), ExitCode::NotPermitted);
}
