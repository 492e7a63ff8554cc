//! What a mounted volume answers about past states.

use brine_store::Error;
use brine_store::volume::SnapshotRow;
use serde_json::{Value, json};

use super::service::VolumeService;
use crate::control::VersionsRequest;
use crate::exit_code::{ExitCode, Failure};
use crate::telemetry::timestamp_ns;

impl VolumeService {
    pub(super) fn versions(&self, request: &VersionsRequest) -> Result<Value, Failure> {
        match request {
            VersionsRequest::Snapshots => {
                let snapshots = self.volume().snapshots()?;
                Ok(json!({ "snapshots": snapshots.iter().map(snapshot_json).collect::<Vec<_>>() }))
            }
            VersionsRequest::CreateSnapshot { name } => {
                let named = self.volume().create_snapshot(name.as_bytes());
                let row = named.map_err(|error| about_snapshot(name, &error))?;
                self.vfs().commit_now()?;
                Ok(snapshot_json(&row))
            }
            VersionsRequest::DeleteSnapshot { name } => {
                let deleted = self.volume().delete_snapshot(name.as_bytes());
                deleted.map_err(|error| about_snapshot(name, &error))?;
                self.vfs().commit_now()?;
                Ok(json!({ "deleted": name }))
            }
            VersionsRequest::RenameSnapshot { name, new_name } => {
                let renamed = self.volume().rename_snapshot(name.as_bytes(), new_name.as_bytes());
                let row = renamed.map_err(|error| match error {
                    Error::NotFound => about_snapshot(name, &error),
                    _ => about_snapshot(new_name, &error),
                })?;
                self.vfs().commit_now()?;
                Ok(snapshot_json(&row))
            }
        }
    }
}

fn snapshot_json(row: &SnapshotRow) -> Value {
    json!({
        "name": String::from_utf8_lossy(&row.name),
        "generation": row.generation.0,
        "time": timestamp_ns(row.time_ns),
        "time_ns": row.time_ns,
    })
}

fn about_snapshot(name: &str, error: &Error) -> Failure {
    let text = match error {
        Error::NotFound => format!("there is no snapshot \"{name}\"; `brine snapshot list` shows them"),
        Error::Exists => format!("there is a snapshot \"{name}\" already; choose another name, or delete that one"),
        other => format!("snapshot \"{name}\": {other}"),
    };
    Failure::new(ExitCode::from(error), text)
}
