//! What a mounted volume answers about quotas.

use std::path::Path;

use brine_store::Error;
use brine_store::volume::{Quota, QuotaLimits, QuotaState};
use serde_json::{Value, json};

use super::service::VolumeService;
use super::versions::names_of;
use crate::control::{NewLimit, QuotaRequest};
use crate::exit_code::{ExitCode, Failure};

impl VolumeService {
    pub(super) fn quota(&self, request: &QuotaRequest) -> Result<Value, Failure> {
        match request {
            QuotaRequest::List => self.quotas_json(&self.volume().quotas()?),
            QuotaRequest::Show { path } => {
                let ino = self.live(&names_of(path)).map_err(|error| about(path, &error))?;
                self.quotas_json(&self.volume().quotas_of(ino)?)
            }
            QuotaRequest::Set { path, bytes, inodes } => {
                let ino = self.live(&names_of(path)).map_err(|error| about(path, &error))?;
                let before = self.volume().quotas()?.into_iter().find(|quota| quota.directory == ino);
                let before = before.map(|quota| quota.limits).unwrap_or_default();
                let limit = |new: Option<NewLimit>, old| match new {
                    None => old,
                    Some(NewLimit::None) => None,
                    Some(NewLimit::AtMost(limit)) => Some(limit),
                };
                let limits = QuotaLimits { bytes: limit(*bytes, before.bytes), inodes: limit(*inodes, before.inodes) };
                // What is buffered is counted, too.
                self.commit_quota()?;
                let quota = self.volume().set_quota(ino, limits).map_err(|error| about(path, &error))?;
                self.commit_quota()?;
                self.quota_json(&quota)
            }
            QuotaRequest::Remove { path } => {
                let ino = self.live(&names_of(path)).map_err(|error| about(path, &error))?;
                self.volume().remove_quota(ino).map_err(|error| match error {
                    Error::NotFound => {
                        let text = format!("{} has no quota of its own; `brine quota list` shows them", path.display());
                        Failure::new(ExitCode::NotFound, text)
                    }
                    error => about(path, &error),
                })?;
                self.commit_quota()?;
                Ok(json!({ "removed": path.to_string_lossy() }))
            }
        }
    }

    fn commit_quota(&self) -> Result<(), Failure> {
        self.vfs().commit_now()?;
        Ok(())
    }

    fn quotas_json(&self, quotas: &[Quota]) -> Result<Value, Failure> {
        let quotas: Result<Vec<Value>, Failure> = quotas.iter().map(|quota| self.quota_json(quota)).collect();
        Ok(json!({ "quotas": quotas? }))
    }

    fn quota_json(&self, quota: &Quota) -> Result<Value, Failure> {
        Ok(json!({
            "directory": self.volume().path_of(quota.directory)?,
            "bytes": quota.bytes,
            "bytes_limit": quota.limits.bytes,
            "inodes": quota.inodes,
            "inodes_limit": quota.limits.inodes,
            "state": match quota.state {
                QuotaState::Enforced => "enforced",
                QuotaState::Counting => "counting",
                QuotaState::Removed => "removed",
            },
        }))
    }
}

fn about(path: &Path, error: &Error) -> Failure {
    let text = match error {
        Error::NotADirectory => format!("{} is no directory; a quota is set on a directory", path.display()),
        Error::NotFound => format!("{} is not there", path.display()),
        other => format!("{}: {other}", path.display()),
    };
    Failure::new(ExitCode::from(error), text)
}
