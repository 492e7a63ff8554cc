//! Reading and writing of the fields a body is made of.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Appends fields.
#[derive(Default)]
pub(crate) struct Writer(pub Vec<u8>);

impl Writer {
    pub fn u8(&mut self, number: u8) -> &mut Self {
        self.0.push(number);
        self
    }

    pub fn u32(&mut self, number: u32) -> &mut Self {
        self.0.extend(number.to_le_bytes());
        self
    }

    pub fn u64(&mut self, number: u64) -> &mut Self {
        self.0.extend(number.to_le_bytes());
        self
    }

    /// Bytes behind their length, 32 bits.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.u32(bytes.len() as u32);
        self.0.extend(bytes);
        self
    }

    pub fn path(&mut self, path: &Path) -> &mut Self {
        self.bytes(path.as_os_str().as_bytes())
    }
}

/// Takes fields off the front. What it was not given it does not allocate.
pub(crate) struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    pub fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(Error::Malformed("it ends too early"))?;
        self.0 = rest;
        Ok(taken)
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    pub fn u8(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    pub fn u16(&mut self) -> Result<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub fn bytes(&mut self) -> Result<&'a [u8]> {
        let len = self.u32()?;
        self.take(len as usize)
    }

    /// What a system call can take: without NUL.
    pub fn text(&mut self) -> Result<&'a [u8]> {
        let bytes = self.bytes()?;
        if bytes.contains(&0) {
            return Err(Error::Malformed("a zero byte in a string"));
        }
        Ok(bytes)
    }

    /// [`Self::text`], kept.
    pub fn string(&mut self) -> Result<OsString> {
        Ok(OsString::from_vec(self.text()?.to_vec()))
    }

    pub fn path(&mut self) -> Result<PathBuf> {
        self.string().map(PathBuf::from)
    }

    /// `item` as often as the count in front says.
    pub fn list<T>(&mut self, item: impl Fn(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        let count = self.u32()?;
        // Every item has at least one byte.
        if count as usize > self.0.len() {
            return Err(Error::Malformed("it ends too early"));
        }
        // Grown from there: memory comes with what has arrived.
        let mut out = Vec::with_capacity(count.min(64) as usize);
        for _ in 0..count {
            out.push(item(self)?);
        }
        Ok(out)
    }

    /// Nothing may be left.
    pub fn end(self) -> Result<()> {
        if self.0.is_empty() { Ok(()) } else { Err(Error::Malformed("bytes behind its end")) }
    }
}
