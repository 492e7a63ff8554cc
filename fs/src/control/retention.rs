//! What is asked about the rules of retention, answered by a daemon or by a command that opened the volume itself.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use brine_store::Error;
use brine_store::ids::{Ino, ROOT_INO};
use brine_store::retention::Rules;
use brine_store::volume::Volume;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::exit_code::{ExitCode, Failure};

/// A question about rules.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetentionRequest {
    /// The directory, as a path inside the volume; `None`: the volume.
    pub directory: Option<PathBuf>,
    /// What is to be done.
    pub change: RetentionChange,
}

/// See [`RetentionRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RetentionChange {
    /// Nothing: only tell.
    None,
    /// These rules.
    Set(Rules),
    /// No rules of the directory's own any more.
    Clear,
}

/// Do what is asked, and tell the rules that hold then. They are part of the open generation.
///
/// # Errors
/// Names what is not there, or what contradicts what.
pub fn answer_retention(volume: &Volume, request: &RetentionRequest) -> Result<Value, Failure> {
    let directory = request.directory.as_deref().filter(|path| names(path).next().is_some());
    let Some(path) = directory else {
        match &request.change {
            RetentionChange::None => {}
            RetentionChange::Set(rules) => volume.set_retention_rules(rules)?,
            RetentionChange::Clear => {
                let text = "the volume always has rules; `brine retention set --default` makes them those of a new one";
                return Err(Failure::usage(text));
            }
        }
        let mut answer = to_json(&volume.retention_rules()?)?;
        let all = volume.directory_rules()?.into_iter().map(|of| {
            let mut one = to_json(&of.rules)?;
            one["path"] = of.path.map_or(Value::Null, |path| String::from_utf8_lossy(&path).into());
            one["ino"] = of.dir.0.into();
            Ok(one)
        });
        answer["directories"] = all.collect::<Result<Vec<Value>, Failure>>()?.into();
        return Ok(answer);
    };
    let dir = find(volume, path)?;
    let changed = match &request.change {
        RetentionChange::None => Ok(()),
        RetentionChange::Set(rules) => volume.set_directory_rules(dir, Some(rules)),
        RetentionChange::Clear => volume.set_directory_rules(dir, None),
    };
    changed.map_err(|error| match error {
        Error::NotFound => Failure::new(ExitCode::NotFound, format!("{} has no rules of its own", path.display())),
        Error::NotADirectory => {
            Failure::new(ExitCode::Refused, format!("{} is no directory; rules are a directory's", path.display()))
        }
        error => error.into(),
    })?;
    // Its own, or those of the nearest above.
    let all = volume.directory_rules()?;
    let mut found = None;
    for above in path.ancestors() {
        let above_dir = find(volume, above)?;
        found = all.iter().find(|of| of.dir == above_dir);
        if found.is_some() {
            break;
        }
    }
    let mut answer = match found {
        Some(of) => to_json(&of.rules)?,
        None => to_json(&volume.retention_rules()?)?,
    };
    answer["path"] = path.to_string_lossy().into();
    answer["own"] = found.is_some_and(|of| of.dir == dir).into();
    Ok(answer)
}

fn names(path: &Path) -> impl Iterator<Item = &[u8]> {
    let bytes = path.as_os_str().as_bytes();
    bytes.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".")
}

fn find(volume: &Volume, path: &Path) -> Result<Ino, Failure> {
    names(path).try_fold(ROOT_INO, |at, name| volume.lookup(at, name).map(|attr| attr.ino)).map_err(|error| match error
    {
        Error::NotFound | Error::NotADirectory => {
            Failure::new(ExitCode::NotFound, format!("{} is not there", path.display()))
        }
        error => error.into(),
    })
}

/// Rules as JSON, and a question's answer back to rules, as the command reads them.
///
/// # Errors
/// If the answer is of another version.
pub fn rules_of(answer: &Value) -> Result<Rules, Failure> {
    let mut fields = answer.clone();
    if let Some(object) = fields.as_object_mut() {
        ["path", "own", "ino", "directories"].iter().for_each(|key| {
            object.remove(*key);
        });
    }
    serde_json::from_value(fields)
        .map_err(|error| Failure::new(ExitCode::Failed, format!("the daemon's rules: {error}")))
}

fn to_json(rules: &Rules) -> Result<Value, Failure> {
    let value = serde_json::to_value(rules);
    value.map_err(|error| Failure::new(ExitCode::Failed, format!("rules as JSON: {error}")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rules_are_read_back_from_an_answer() {
        let rules = Rules { last: 7, ..Rules::default() };
        let mut answer = to_json(&rules).unwrap();
        answer["path"] = "/a".into();
        answer["own"] = true.into();
        answer["directories"] = json!([]);
        assert_eq!(rules_of(&answer).unwrap(), rules);
        answer["frobnicate"] = 1.into();
        assert!(rules_of(&answer).is_err());
    }
}
