//! What the checkpoint loader promises: good files load exactly, and every kind of bad file is refused with a message that
//! says what is wrong, before its sizes are believed.

use serde_json::{Map, Value, json};
use tessera::{
    error::{Error, Kind},
    model::{checkpoint::Checkpoint, params::params, safetensors},
};

use crate::common;

/// A file in parts, to be damaged before it is put together.
struct Parts {
    header: Map<String, Value>,
    data: Vec<u8>,
}

impl Parts {
    /// A good checkpoint of the small architecture.
    fn good() -> Self {
        let bytes = good_bytes();
        let (header, data) = bytes[8..].split_at(header_len(&bytes));
        Self { header: serde_json::from_slice(header).unwrap(), data: data.to_vec() }
    }

    fn bytes(&self) -> Vec<u8> {
        assemble(&serde_json::to_string(&self.header).unwrap(), &self.data)
    }

    fn entry(&mut self, name: &str) -> &mut Map<String, Value> {
        self.header[name].as_object_mut().unwrap()
    }

    fn metadata(&mut self, key: &str, value: impl Into<Value>) {
        self.entry("__metadata__").insert(key.into(), value.into());
    }

    fn range(&self, name: &str) -> [usize; 2] {
        serde_json::from_value(self.header[name]["data_offsets"].clone()).unwrap()
    }

    /// The tensor whose values end the file.
    fn last(&self) -> String {
        let tensors = self.header.keys().filter(|name| *name != "__metadata__");
        tensors.max_by_key(|name| self.range(name)).unwrap().clone()
    }

    fn refused(&self, field: &str, value: &str) {
        refused(&self.bytes(), field, value);
    }
}

fn header_len(bytes: &[u8]) -> usize {
    u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize
}

fn assemble(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

fn good_bytes() -> Vec<u8> {
    let arch = common::small_arch();
    let weights = common::random_weights(&arch, 5);
    let tensors: Vec<_> =
        weights.iter().map(|(name, p)| (name, p.shape.as_slice(), p.data.as_slice())).collect();
    let text = |key: &str, value: String| (key.to_owned(), value);
    let arch = common::SMALL_ARCH.to_owned();
    let metadata = [text("format", "tessera".into()), text("arch", arch)].into();
    let mut bytes = Vec::new();
    safetensors::write(&mut bytes, &tensors, &metadata).unwrap();
    bytes
}

fn error(bytes: &[u8]) -> Error {
    match Checkpoint::from_bytes(bytes) {
        Ok(_) => panic!("the file was accepted"),
        Err(error) => error,
    }
}

/// The file is refused because of `field`, which has `value`.
fn refused(bytes: &[u8], field: &str, value: &str) {
    let error = error(bytes);
    assert_eq!(error.kind(), Kind::InvalidModel, "{error}");
    let fields = error.detail().fields();
    assert_eq!((&fields["field"], &fields["value"]), (&field.into(), &value.into()), "{error}");
}

/// The file is refused because its header is no JSON of the right form; the parser says why.
fn malformed(bytes: &[u8], why: &str) {
    refused(bytes, "header", "malformed");
    assert!(error(bytes).report().to_string().contains(why), "{why}");
}

/// A good file gives back every parameter bit for bit, its statistics and its hash.
#[test]
fn good_file_loads_exactly() {
    let bytes = good_bytes();
    let model = Checkpoint::from_bytes(&bytes).unwrap();
    let expected = common::random_weights(&model.arch, 5);
    assert_eq!(model.arch, common::small_arch());
    for (name, shape) in params(&model.arch).unwrap() {
        let found = model.weights.get(&name, &shape).unwrap();
        assert_eq!(found, expected.get(&name, &shape).unwrap(), "{name}");
    }
    assert_eq!(model.latent_stats.len(), 3);
    assert_eq!(model.latent_stats[2].std.len(), 6);

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    std::fs::write(&path, &bytes).unwrap();
    let again = Checkpoint::open(&path).unwrap();
    assert_eq!((again.sha256.len(), &again.sha256), (64, &model.sha256));
    let changed = [&bytes[..bytes.len() - 4], &0.25f32.to_le_bytes()].concat();
    assert_ne!(Checkpoint::from_bytes(&changed).unwrap().sha256, model.sha256);
}

/// F16 and BF16 values are read as the numbers they stand for.
#[test]
fn half_precision_is_read() {
    for (dtype, bits) in [("F16", [0x00, 0x3e]), ("BF16", [0xc0, 0x3f])] {
        let mut parts = Parts::good();
        let name = parts.last();
        let [from, to] = parts.range(&name);
        let count = (to - from) / 4;
        parts.data.truncate(from);
        parts.data.extend(bits.repeat(count));
        parts.entry(&name).insert("dtype".into(), dtype.into());
        parts.entry(&name).insert("data_offsets".into(), json!([from, from + 2 * count]));
        let bytes = parts.bytes();
        let reader = safetensors::Reader::new(&bytes[..], bytes.len() as u64).unwrap();
        assert_eq!(reader.read().unwrap().tensors[&name].data, vec![1.5; count], "{dtype}");
    }
}

/// The SHA-256 is that of the file's bytes.
#[test]
fn hash_is_of_the_whole_file() {
    let mut bytes = Vec::new();
    safetensors::write(&mut bytes, &[("a", &[1], &[1.0])], &Default::default()).unwrap();
    let length = bytes.len() as u64;
    let found = safetensors::Reader::new(&bytes[..], length).unwrap().read().unwrap().sha256;
    let digest = <sha2::Sha256 as sha2::Digest>::digest(&bytes);
    assert_eq!(found, digest.iter().map(|b| format!("{b:02x}")).collect::<String>());
}

#[test]
fn missing_file_is_refused() {
    let error = Checkpoint::open("no/such/model.safetensors".as_ref()).unwrap_err();
    assert_eq!(error.kind(), Kind::Io);
    assert_eq!(error.detail().fields()["path"], "no/such/model.safetensors");
}

#[test]
fn directory_is_refused() {
    let error = Checkpoint::open("src".as_ref()).unwrap_err();
    assert_eq!(error.kind(), Kind::Io);
}

/// Cut anywhere, a file is refused: in the length, the header, the values.
#[test]
fn truncated_file_is_refused() {
    let bytes = good_bytes();
    let header_len = header_len(&bytes);
    let end = (bytes.len() - header_len - 8).to_string();
    refused(&bytes[..0], "file length", "0 bytes");
    refused(&bytes[..7], "file length", "7 bytes");
    refused(&bytes[..100], "header length", &header_len.to_string());
    refused(&bytes[..header_len + 8], "end of the tensors", &end);
    refused(&bytes[..bytes.len() - 1], "end of the tensors", &end);
}

/// A file that shrinks after its length was taken is refused.
#[test]
fn shrinking_file_is_refused() {
    let bytes = good_bytes();
    let reader = safetensors::Reader::new(&bytes[..bytes.len() - 1], bytes.len() as u64).unwrap();
    assert_eq!(reader.read().unwrap_err().kind(), Kind::InvalidModel);
}

#[test]
fn longer_file_is_refused() {
    let bytes = good_bytes();
    let end = (bytes.len() - header_len(&bytes) - 8).to_string();
    refused(&[&bytes[..], &[0]].concat(), "end of the tensors", &end);
}

/// A header length beyond the file, or beyond the limit, is refused before memory is taken for it.
#[test]
fn lying_header_length_is_refused() {
    let mut bytes = good_bytes();
    for lie in [u64::MAX, 1 << 40, bytes.len() as u64 - 7] {
        bytes[..8].copy_from_slice(&lie.to_le_bytes());
        refused(&bytes, "header length", &lie.to_string());
    }
    struct Endless;
    impl std::io::Read for Endless {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            buffer.fill(1);
            Ok(buffer.len())
        }
    }
    let error = safetensors::Reader::new(Endless, u64::MAX).unwrap_err();
    assert_eq!(error.field(), Some("file"));
}

/// A file of another kind, here of pixels, is said to be one.
#[test]
fn another_kind_of_file_is_named_as_such() {
    let error = safetensors::Reader::new(&[0x89; 4096][..], 4096).unwrap_err();
    assert_eq!(error.to_string(), "file is in another format; expected a safetensors file");
}

#[test]
fn header_that_is_no_object_is_refused() {
    refused(&assemble("[]", &[]), "header", "not JSON");
    refused(&assemble(" {}", &[]), "header", "not JSON");
    malformed(&assemble("{", &[]), "");
    malformed(&assemble("{}{}", &[]), "");
    malformed(&assemble("{\"a\":1}", &[]), "");
    malformed(&assemble(&"{\"a\":".repeat(100_000), &[]), "");
}

#[test]
fn overlapping_tensors_are_refused() {
    let mut parts = Parts::good();
    let name = parts.last();
    let [from, to] = parts.range(&name);
    parts.entry(&name).insert("data_offsets".into(), json!([from - 4, to - 4]));
    parts.refused(&format!("tensor {name} start"), &(from - 4).to_string());
}

#[test]
fn holes_are_refused() {
    let mut parts = Parts::good();
    let name = parts.last();
    let [from, to] = parts.range(&name);
    parts.entry(&name).insert("data_offsets".into(), json!([from + 4, to + 4]));
    parts.data.extend([0; 4]);
    parts.refused(&format!("tensor {name} start"), &(from + 4).to_string());
}

#[test]
fn impossible_ranges_and_shapes_are_refused() {
    let name = Parts::good().last();
    let offsets = json!([8, 4]);
    let wrap = json!([1_u64 << 32, 1_u64 << 32, 4]);
    for (field, value) in [("data_offsets", offsets), ("shape", wrap), ("shape", json!([-1]))] {
        let mut parts = Parts::good();
        parts.entry(&name).insert(field.into(), value);
        assert_eq!(error(&parts.bytes()).kind(), Kind::InvalidModel);
    }
}

/// Repeated keys are refused, of tensors, of fields and of metadata, though JSON readers tend to let the last one win.
#[test]
fn duplicate_keys_are_refused() {
    let parts = Parts::good();
    let text = serde_json::to_string(&parts.header).unwrap();
    let name = parts.last();
    let entry = serde_json::to_string(&parts.header[&name]).unwrap();
    let again = format!("{{\"{name}\":{entry},{}", &text[1..]);
    malformed(&assemble(&again, &parts.data), &format!("duplicate key {name}"));
    let field = text.replacen("\"dtype\":\"F32\"", "\"dtype\":\"F32\",\"dtype\":\"F32\"", 1);
    malformed(&assemble(&field, &parts.data), "duplicate field");
    let key = text.replacen("\"format\":", "\"format\":\"x\",\"format\":", 1);
    malformed(&assemble(&key, &parts.data), "duplicate key format");
    let metadata = format!("{{\"__metadata__\":{{}},{}", &text[1..]);
    malformed(&assemble(&metadata, &parts.data), "duplicate key __metadata__");
}

#[test]
fn wrong_shape_is_refused() {
    let mut parts = Parts::good();
    let shape = &mut parts.entry("encoder.stem.weight")["shape"];
    shape.as_array_mut().unwrap().swap(0, 1);
    let found = shape.to_string().replace(',', ", ");
    parts.refused("tensor encoder.stem.weight shape", &found);
}

#[test]
fn wrong_dtype_is_refused() {
    let mut parts = Parts::good();
    parts.entry("encoder.stem.bias").insert("dtype".into(), "I32".into());
    malformed(&parts.bytes(), "I32");
    parts.entry("encoder.stem.bias").insert("dtype".into(), "F16".into());
    let error = error(&parts.bytes());
    assert_eq!(error.field(), Some("tensor encoder.stem.bias data_offsets"));
}

#[test]
fn non_finite_values_are_refused() {
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut parts = Parts::good();
        let at = parts.range("unet.enter.bias")[0] + 8;
        parts.data[at..at + 4].copy_from_slice(&value.to_le_bytes());
        parts.refused("tensor unet.enter.bias[2]", &value.to_string());
    }
}

/// Latents are divided by these.
#[test]
fn non_positive_deviation_is_refused() {
    let mut parts = Parts::good();
    let at = parts.range("latents.1.std")[0];
    parts.data[at..at + 4].fill(0);
    parts.refused("tensor latents.1.std[0]", "0");
}

#[test]
fn missing_tensor_is_refused() {
    let mut parts = Parts::good();
    let name = parts.last();
    let from = parts.range(&name)[0];
    parts.header.remove(&name);
    parts.data.truncate(from);
    parts.refused(&format!("tensor {name}"), "missing");
}

#[test]
fn unknown_tensor_is_refused() {
    let mut parts = Parts::good();
    let end = parts.data.len();
    let entry = json!({"dtype": "F32", "shape": [1], "data_offsets": [end, end + 4]});
    parts.header.insert("decoder.extra".into(), entry);
    parts.data.extend([0; 4]);
    parts.refused("tensor name", "decoder.extra");
}

#[test]
fn other_formats_are_refused() {
    let mut parts = Parts::good();
    parts.metadata("format", "pt");
    parts.refused("metadata format", "pt");
    parts.entry("__metadata__").remove("format");
    parts.refused("metadata format", "missing");
    parts.header.remove("__metadata__");
    parts.refused("metadata format", "missing");
}

#[test]
fn bad_arch_is_refused() {
    let mut parts = Parts::good();
    parts.entry("__metadata__").remove("arch");
    parts.refused("metadata arch", "missing");
    let good = common::SMALL_ARCH;
    for (from, to, field, value) in [
        ("{", "", "arch", "malformed"),
        ("\"version\":1", "\"version\":3", "arch.version", "3"),
        ("\"name\":", "\"nom\":", "arch", "malformed"),
        ("\"factor\":16", "\"factor\":12", "arch.levels.factor", "12"),
        ("\"width\":64", "\"width\":65", "arch.width", "65"),
        ("\"embedding\":8", "\"embedding\":7", "arch.unet.embedding", "7"),
        ("\"sigma_min\":0.002", "\"sigma_min\":-1.0", "arch.noise.sigma_min", "-1"),
        ("\"shift\":[0.0,", "\"shift\":[", "arch.noise.shift", "2 entries"),
        ("\"embedding\":8", "\"embedding\":8,\"embedding\":8", "arch", "malformed"),
    ] {
        assert!(good.contains(from), "{from}");
        parts.metadata("arch", good.replacen(from, to, 1));
        parts.refused(field, value);
    }
}

/// An architecture that asks for the largest of everything is refused by its missing tensors, at once.
#[test]
fn huge_arch_is_refused() {
    let good = common::SMALL_ARCH;
    let mut parts = Parts::good();
    parts.metadata("arch", good.replace("\"blocks\":1", "\"blocks\":1000000000"));
    parts.refused("arch.blocks", "1000000000");
    parts.metadata("arch", good.replace("\"channels\":8", "\"channels\":1000000000000"));
    parts.refused("arch.channels", "1000000000000");
    let most = good
        .replace("\"blocks\":1", "\"blocks\":64")
        .replace("\"channels\":8", "\"channels\":8192");
    parts.metadata("arch", most);
    let error = error(&parts.bytes());
    assert!(error.field().is_some_and(|field| field.starts_with("tensor")), "{error}");
}

/// What is written is read back; what can't be is refused before the file is begun.
#[test]
fn written_files_are_read_back() {
    let metadata = [("note".to_owned(), "\"quoted\" \u{2603}".to_owned())].into();
    let mut bytes = Vec::new();
    let (b, a) = ([1.0f32, -2.5], [f32::MIN_POSITIVE]);
    safetensors::write(&mut bytes, &[("b", &[2, 1], &b), ("a", &[], &a)], &metadata).unwrap();
    assert_eq!(header_len(&bytes) % 8, 0);
    let length = bytes.len() as u64;
    let contents = safetensors::Reader::new(&bytes[..], length).unwrap().read().unwrap();
    assert_eq!(contents.metadata, metadata);
    assert_eq!(
        (&contents.tensors["b"].data[..], &contents.tensors["a"].data[..]),
        (&b[..], &a[..])
    );
    let empty = Default::default();
    assert!(safetensors::write(Vec::new(), &[("b", &[3], &b)], &empty).is_err());
    assert!(safetensors::write(Vec::new(), &[("b", &[2], &b), ("b", &[2], &b)], &empty).is_err());
}
