//! The safetensors format: a reader for untrusted files, and a writer.
//!
//! A file is 8 bytes of little-endian header length, the header (a JSON object from tensor names to dtype, shape and
//! byte range, and `__metadata__`), and the values. The reader checks everything: the header's length against the
//! file's before memory is allocated, that names do not repeat, and that the ranges fill the rest of the file without
//! holes or overlaps. F32, F16 and BF16 are read, as f32, and must be finite.
//!
//! It is not the `safetensors` crate, because that one accepts repeated names (the last one wins), needs the whole file
//! in memory, and neither bounds the header by the file's length nor rejects values that are not finite. The
//! checkpoint's hash is computed in the same pass.

use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    io::{self, BufReader, Read, Write},
    path::Path,
};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{self, MapAccess, Visitor},
};
use sha2::{Digest, Sha256};

use crate::{
    error::{Error, Expected, Result},
    ops::weights::Param,
    store::hash::hex,
};

/// Longest header that is read, in bytes.
pub const MAX_HEADER: u64 = 16 << 20;

/// First bytes of files that are often taken for models, and what they are.
const FOREIGN: [(&[u8], &str); 9] = [
    (b"version ", "a Git LFS pointer, not the file itself (git lfs pull fetches it)"),
    (b"<!DOCTYP", "an HTML page, not the file itself"),
    (b"<!doctyp", "an HTML page, not the file itself"),
    (b"<html", "an HTML page, not the file itself"),
    (b"PK\x03\x04", "a PyTorch or other ZIP archive"),
    (b"\x80\x02", "a PyTorch pickle"),
    (b"GGUF", "a GGUF file"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x89PNG", "a PNG picture"),
];

/// Storage format of a tensor's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
enum Dtype {
    F32,
    F16,
    BF16,
}

impl Dtype {
    fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }

    fn decode(self, bytes: &[u8]) -> Vec<f32> {
        let half = |f: fn([u8; 2]) -> f32| bytes.chunks_exact(2).map(move |b| f([b[0], b[1]]));
        match self {
            Self::F32 => bytes
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect(),
            Self::F16 => half(|b| half::f16::from_le_bytes(b).to_f32()).collect(),
            Self::BF16 => half(|b| half::bf16::from_le_bytes(b).to_f32()).collect(),
        }
    }
}

/// A tensor's entry in the header.
#[derive(Clone, Debug, Serialize)]
struct Entry {
    dtype: Dtype,
    shape: Vec<usize>,
    data_offsets: [u64; 2],
}

/// An entry whose storage format is not known yet.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [u64; 2],
}

impl RawEntry {
    fn check<E: de::Error>(self, name: &str) -> Result<Entry, E> {
        let dtype = match self.dtype.as_str() {
            "F32" => Dtype::F32,
            "F16" => Dtype::F16,
            "BF16" => Dtype::BF16,
            other => {
                return Err(E::custom(format!(
                    "tensor {name} is of dtype {other}; F32, F16 and BF16 are read"
                )));
            }
        };
        Ok(Entry { dtype, shape: self.shape, data_offsets: self.data_offsets })
    }
}

/// The `__metadata__` object: text by name.
pub type Metadata = BTreeMap<String, String>;

/// A file whose header is read and checked, and whose values are not read yet.
pub struct Reader<R> {
    source: R,
    hash: Sha256,
    metadata: Metadata,
    /// Sorted by position in the file.
    entries: Vec<(String, Entry)>,
}

impl<R> fmt::Debug for Reader<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("entries", &self.entries).finish_non_exhaustive()
    }
}

impl Reader<BufReader<File>> {
    /// Opens a file and reads its header.
    ///
    /// # Errors
    /// [`crate::error::Kind::Io`] when it can't be opened, else as [`Reader::new`].
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |e| Error::io("open", path, e);
        let file = File::open(path).map_err(failed)?;
        let info = file.metadata().map_err(failed)?;
        if !info.is_file() {
            return Err(failed(io::Error::other("not a regular file")));
        }
        Self::new(BufReader::new(file), info.len())
    }
}

impl<R: Read> Reader<R> {
    /// Reads the header of a file of `len` bytes.
    ///
    /// # Errors
    /// [`crate::error::Kind::InvalidModel`] when the header is damaged or hostile, naming the field.
    pub fn new(mut source: R, len: u64) -> Result<Self> {
        let mut prefix = [0; 8];
        let after_prefix = len.checked_sub(8).ok_or_else(|| {
            Error::model("file length", format!("{len} bytes"), "at least 8 bytes")
        })?;
        fill(&mut source, &mut prefix, "header length")?;
        if let Some((_, what)) = FOREIGN.iter().find(|(start, _)| prefix.starts_with(start)) {
            return Err(Error::model("file", what, "a safetensors file"));
        }
        let header_len = u64::from_le_bytes(prefix);
        let limit = after_prefix.min(MAX_HEADER);
        if header_len > limit {
            let mut first = [0];
            // A header is a JSON object without a space before it.
            let is_header = source.read(&mut first).is_ok_and(|read| read == 0 || first == *b"{");
            return Err(match is_header {
                true => Error::model("header length", header_len, Expected::at_most(limit)),
                false => Error::model("file", "in another format", "a safetensors file"),
            });
        }
        let mut text = vec![0; header_len as usize];
        fill(&mut source, &mut text, "header")?;
        let header = Header::parse(&text)?;
        let entries = check_layout(header.entries, after_prefix - header_len)?;
        let hash = Sha256::new_with_prefix(prefix).chain_update(&text);
        Ok(Self { source, hash, metadata: header.metadata, entries })
    }

    /// The metadata.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Names and shapes of the tensors.
    pub fn shapes(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.entries.iter().map(|(name, entry)| (name.as_str(), entry.shape.as_slice()))
    }

    /// Reads the values.
    ///
    /// # Errors
    /// [`crate::error::Kind::InvalidModel`] when the file ends early or a value is not finite.
    pub fn read(mut self) -> Result<Contents> {
        let mut tensors = BTreeMap::new();
        for (name, entry) in self.entries {
            // The range lies in the file, so its length is no more than the file's.
            let mut bytes = vec![0; (entry.data_offsets[1] - entry.data_offsets[0]) as usize];
            fill(&mut self.source, &mut bytes, &format!("tensor {name}"))?;
            self.hash.update(&bytes);
            let data = entry.dtype.decode(&bytes);
            if let Some(at) = data.iter().position(|v| !v.is_finite()) {
                let value = data[at];
                return Err(Error::model(format!("tensor {name}[{at}]"), value, "a finite number"));
            }
            tensors.insert(name, Param { shape: entry.shape, data });
        }
        let sha256 = hex(&self.hash.finalize());
        Ok(Contents { tensors, metadata: self.metadata, sha256 })
    }
}

/// A file's contents.
#[derive(Clone, Debug)]
pub struct Contents {
    /// Tensors by name, as f32.
    pub tensors: BTreeMap<String, Param>,
    /// The metadata.
    pub metadata: Metadata,
    /// SHA-256 of the whole file, in hexadecimal.
    pub sha256: String,
}

/// Reads a file as a whole.
///
/// # Errors
/// Those of [`Reader::open`] and [`Reader::read`].
pub fn read(path: &Path) -> Result<Contents> {
    Reader::open(path)?.read()
}

fn fill(source: &mut impl Read, buffer: &mut [u8], part: &str) -> Result<()> {
    source
        .read_exact(buffer)
        .map_err(|e| Error::model(part.to_owned(), "incomplete", "all its bytes").with_source(e))
}

/// The tensors sorted by position, after checking that their ranges fill `len` bytes exactly and agree with their
/// shapes.
fn check_layout(entries: BTreeMap<String, Entry>, len: u64) -> Result<Vec<(String, Entry)>> {
    let mut entries: Vec<_> = entries.into_iter().collect();
    entries.sort_by_key(|(_, entry)| entry.data_offsets);
    let mut end = 0;
    for (name, Entry { dtype, shape, data_offsets: [from, to] }) in &entries {
        let elements = shape.iter().try_fold(1usize, |a, &b| a.checked_mul(b));
        let bytes = elements.and_then(|n| n.checked_mul(dtype.size())).map(|n| n as u64);
        if bytes.is_none() || to.checked_sub(*from) != bytes {
            return Err(Error::model(
                format!("tensor {name} data_offsets"),
                format!("{from} to {to}"),
                format!("the size of {dtype:?} {shape:?}"),
            ));
        }
        if *from != end {
            let expected = format!("{end}, the end of the previous tensor");
            return Err(Error::model(format!("tensor {name} start"), from, expected));
        }
        end = *to;
    }
    if end != len {
        return Err(Error::model("end of the tensors", end, format!("{len}, the end of the file")));
    }
    Ok(entries)
}

/// The header as it stands in the file; names are unique.
#[derive(Default)]
struct Header {
    metadata: Metadata,
    entries: BTreeMap<String, Entry>,
}

impl Header {
    fn parse(text: &[u8]) -> Result<Self> {
        if text.first() != Some(&b'{') {
            return Err(Error::model("header", "not JSON", "an object of tensors"));
        }
        serde_json::from_slice(text)
            .map_err(|e| Error::model("header", "malformed", "an object of tensors").with_source(e))
    }
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct HeaderVisitor;
        impl<'de> Visitor<'de> for HeaderVisitor {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut header = Header::default();
                let mut metadata = None;
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        let Unique(value) = map.next_value()?;
                        if metadata.replace(value).is_some() {
                            return Err(duplicate(&name));
                        }
                    } else {
                        let entry = map.next_value::<RawEntry>()?.check(&name)?;
                        insert_new(&mut header.entries, name, entry)?;
                    }
                }
                header.metadata = metadata.unwrap_or_default();
                Ok(header)
            }
        }
        deserializer.deserialize_map(HeaderVisitor)
    }
}

/// A map of texts with unique names.
struct Unique(Metadata);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct UniqueVisitor;
        impl<'de> Visitor<'de> for UniqueVisitor {
            type Value = Unique;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of texts")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Unique, A::Error> {
                let mut texts = Metadata::new();
                while let Some((name, value)) = map.next_entry()? {
                    insert_new(&mut texts, name, value)?;
                }
                Ok(Unique(texts))
            }
        }
        deserializer.deserialize_map(UniqueVisitor)
    }
}

fn insert_new<V, E: de::Error>(
    map: &mut BTreeMap<String, V>,
    name: String,
    value: V,
) -> Result<(), E> {
    match map.entry(name) {
        std::collections::btree_map::Entry::Vacant(place) => {
            place.insert(value);
            Ok(())
        }
        std::collections::btree_map::Entry::Occupied(place) => Err(duplicate(place.key())),
    }
}

fn duplicate<E: de::Error>(name: &str) -> E {
    E::custom(format!("duplicate key {name}"))
}

/// Writes `tensors` (name, shape, values) as F32, in order of their names.
///
/// # Errors
/// [`Kind::InvalidArgument`](crate::error::Kind) when a name is used twice or values don't fill their shape;
/// [`Kind::Io`](crate::error::Kind) when `out` fails.
pub fn write(
    mut out: impl Write,
    tensors: &[(&str, &[usize], &[f32])],
    metadata: &Metadata,
) -> Result<()> {
    let mut tensors = tensors.to_vec();
    tensors.sort_by_key(|&(name, ..)| name);
    let mut header = serde_json::Map::new();
    let json = |e: serde_json::Error| Error::internal("serialising a header").with_source(e);
    header.insert("__metadata__".into(), serde_json::to_value(metadata).map_err(json)?);
    let mut end = 0;
    for &(name, shape, data) in &tensors {
        if shape.iter().product::<usize>() != data.len() {
            let (len, expected) = (data.len(), format!("the size of {shape:?}"));
            return Err(Error::invalid(format!("tensor {name} values"), len, expected));
        }
        let start = end;
        end += 4 * data.len() as u64;
        let entry = Entry { dtype: Dtype::F32, shape: shape.to_vec(), data_offsets: [start, end] };
        let value = serde_json::to_value(entry).map_err(json)?;
        if header.insert(name.into(), value).is_some() {
            return Err(Error::invalid("tensor name", name, "a name that is used once"));
        }
    }
    let mut text = serde_json::to_vec(&header).map_err(json)?;
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut put = |bytes: &[u8]| out.write_all(bytes).map_err(|e| Error::io("write", "tensors", e));
    put(&(text.len() as u64).to_le_bytes())?;
    put(&text)?;
    for (_, _, data) in tensors {
        let bytes: Vec<u8> = data.iter().flat_map(|v| v.to_le_bytes()).collect();
        put(&bytes)?;
    }
    Ok(())
}
