//! Requests that are refused, for every method of the API: the code, the details, the name of the field.

use std::collections::BTreeMap;

use prost::Message as _;
use prost_types::{
    DescriptorProto, FieldDescriptorProto, MethodDescriptorProto, field_descriptor_proto::Type,
};
use tessera::api::{self, JobSpec, descriptors, model_service_client::ModelServiceClient};
use tokio_stream::StreamExt as _;
use tonic::{
    Code, Request, Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    metadata::MetadataValue,
    transport::Channel,
};
use tonic_types::StatusExt as _;

use crate::common::{
    fixture,
    server::{Server, create, noise, spec, watch},
};

/// A codec of messages as bytes.
#[derive(Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = ();
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        prost::bytes::BufMut::put_slice(buffer, &item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = ();
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<()>, Status> {
        prost::bytes::Buf::advance(buffer, prost::bytes::Buf::remaining(buffer));
        Ok(Some(()))
    }
}

/// Sends `messages` to `path` and returns the status of the call: that of a stream, if there is one, of its first message.
async fn call(channel: &Channel, path: &str, messages: Vec<Vec<u8>>) -> Result<(), Status> {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await.unwrap();
    let request = Request::new(tokio_stream::iter(messages));
    let mut answer = grpc.streaming(request, path.parse().unwrap(), Raw).await?.into_inner();
    answer.next().await.unwrap_or(Ok(()))
}

/// Values of fields by their paths, as protobuf encodes them after the tag.
type Values = BTreeMap<String, Vec<u8>>;

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

fn delimited(bytes: &[u8]) -> Vec<u8> {
    [&varint(bytes.len() as u64), bytes].concat()
}

/// The message of type `message` with the `values` below `prefix`.
fn encode(message: &DescriptorProto, prefix: &str, values: &Values) -> Vec<u8> {
    let mut bytes = Vec::new();
    for field in &message.field {
        let path = format!("{prefix}{}", field.name());
        let value = match (values.get(&path), descriptors::message_of(field)) {
            (Some(value), _) => value.clone(),
            (None, Some(part)) if values.keys().any(|key| key.starts_with(&format!("{path}."))) => {
                delimited(&encode(part, &format!("{path}."), values))
            }
            _ => continue,
        };
        let wire = match field.r#type() {
            Type::Double | Type::Fixed64 => 1,
            Type::String | Type::Bytes | Type::Message => 2,
            _ => 0,
        };
        bytes.extend(varint(u64::from(field.number() as u32) << 3 | wire));
        bytes.extend(value);
    }
    bytes
}

/// All fields of `message` that are not messages of the API, with their paths.
fn leaves(
    message: &'static DescriptorProto,
    prefix: &str,
) -> Vec<(String, &'static FieldDescriptorProto)> {
    let fields = message.field.iter().flat_map(|field| {
        let path = format!("{prefix}{}", field.name());
        match descriptors::message_of(field) {
            Some(part) => leaves(part, &format!("{path}.")),
            None => vec![(path, field)],
        }
    });
    fields.collect()
}

/// Fields that accept every value.
const ACCEPT_ALL: [&str; 7] = [
    "seed",
    "after_sequence",
    "without_tile_data",
    "without_previews",
    "estimates",
    "detach",
    "page_size",
];

/// A value of `field` that is not accepted.
fn invalid(field: &FieldDescriptorProto) -> Vec<u8> {
    match field.r#type() {
        Type::Enum => varint(99),
        Type::Uint32 => varint(u64::from(u32::MAX)),
        Type::Double => (-1f64).to_le_bytes().to_vec(),
        Type::String if field.name() == "request_id" => delimited("x".repeat(129).as_bytes()),
        Type::String => delimited(b"xx"),
        Type::Bytes => delimited(b"no picture"),
        // An entry of a map with the key "xx" and no value.
        Type::Message if field.type_name().ends_with("Entry") => {
            delimited(&[&varint(1 << 3 | 2)[..], &delimited(b"xx")].concat())
        }
        // Seconds that are fine, and -5 nanoseconds.
        Type::Message if field.type_name() == ".google.protobuf.Timestamp" => {
            let time = prost_types::Timestamp { seconds: 4_000_000_000, nanos: -5 };
            delimited(&time.encode_to_vec())
        }
        other => panic!("no invalid value is known for {other:?}, the type of {}", field.name()),
    }
}

/// Values that make the request of `method` valid, as far as they are needed; `job` is a finished one of 32 x 32 pixels.
fn valid(
    method: &MethodDescriptorProto,
    fields: &[(String, &FieldDescriptorProto)],
    job: &str,
) -> Values {
    let mut values = Values::new();
    let viewport = |path: &str| path.split('.').any(|part| part == "viewport");
    for (path, field) in fields {
        let value = match field.name() {
            "name" if method.name() == "GetModel" => delimited(b"models/net-a"),
            "name" => delimited(job.as_bytes()),
            "width" | "height" if viewport(path) => varint(1),
            "width" | "height" => varint(32),
            "steps" => varint(1),
            _ => continue,
        };
        values.insert(path.clone(), value);
    }
    values
}

/// Every field of every request is refused by its own name: `BadRequest` has its path from the request.
#[tokio::test]
async fn requests_with_one_invalid_field_have_its_path_in_the_details() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    let mut client = server.client().await;
    let job = create(&mut client, spec(1, 32, 32, 1)).await.unwrap();
    watch(&mut client, &job.name, 0).await.unwrap();
    let channel = Channel::from_shared(server.url.clone()).unwrap().connect().await.unwrap();
    let (mut checked, mut photo) = (0, std::io::Cursor::new(Vec::new()));
    noise(1, 32, 32).write_to(&mut photo, image::ImageFormat::Png).unwrap();
    let picture = delimited(&photo.into_inner());
    for (service, method) in descriptors::methods() {
        let path = format!("/tessera.v1.{}/{}", service.name(), method.name());
        let input = descriptors::message(method.input_type().rsplit('.').next().unwrap()).unwrap();
        let fields = leaves(input, "");
        for (name, field) in &fields {
            if ACCEPT_ALL.contains(&field.name()) {
                continue;
            }
            let mut values = valid(method, &fields, &job.name);
            values.insert(name.clone(), invalid(field));
            let messages = if method.client_streaming() {
                // One part a message, the request first.
                let data = Values::from([(
                    "data".to_owned(),
                    values.remove("data").unwrap_or(picture.clone()),
                )]);
                vec![encode(input, "", &values), encode(input, "", &data)]
            } else {
                vec![encode(input, "", &values)]
            };
            let status = call(&channel, &path, messages).await.expect_err(name);
            assert_eq!(status.code(), Code::InvalidArgument, "{name} of {path}: {status}");
            let details = status.get_error_details();
            let request =
                details.bad_request().unwrap_or_else(|| panic!("{name} of {path}: {status}"));
            let [violation] = request.field_violations.as_slice() else { panic!("{request:?}") };
            // Only an edit has a strength.
            assert_eq!(&violation.field, name, "{path}: {status}");
            assert!(details.retry_info().is_none(), "{name} of {path}");
            checked += 1;
        }
    }
    assert!(checked > 50, "{checked}");
}

/// Calls without a message, bytes that are no message, and messages that are too long, are errors of the caller, in every method and every message of
/// a stream; none shows the inside of the server.
#[tokio::test]
async fn requests_that_are_malformed_or_too_long_are_refused_with_details() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    let channel = Channel::from_shared(server.url.clone()).unwrap().connect().await.unwrap();
    let long = vec![0; tessera::service::MAX_REQUEST + 1];
    let first = api::edit_picture_request::Part::Job(api::CreateJobRequest::default());
    let first = api::EditPictureRequest { part: Some(first) }.encode_to_vec();
    let edit = "/tessera.v1.JobService/EditPicture".to_owned();
    let mut cases: Vec<_> = descriptors::method_paths().map(|path| (path, Vec::new())).collect();
    cases.push((edit, vec![first]));
    for (path, before) in cases {
        if before.is_empty() {
            // EditPicture misses its job.
            let status = call(&channel, &path, Vec::new()).await.unwrap_err();
            assert_eq!(status.code(), Code::InvalidArgument, "{path}: {status}");
        }
        let messages = |last: &[u8]| [before.clone(), vec![last.to_vec()]].concat();
        let status = call(&channel, &path, messages(b"\xff\xff\xff")).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{path}: {status}");
        let details = status.get_error_details();
        let info = details.error_info().unwrap_or_else(|| panic!("{path}: {status}"));
        assert_eq!((info.reason.as_str(), info.domain.as_str()), ("INVALID_ARGUMENT", "tessera"));
        let clean = !status.message().contains("Status") && status.message().len() < 200;
        assert!(clean, "{path}: {status}");

        let status = call(&channel, &path, messages(&long)).await.unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted, "{path}: {status}");
        assert_eq!(status.message(), "request_bytes is 65537; the limit is 65536", "{path}");
        let details = status.get_error_details();
        let quota = &details.quota_failure().unwrap().violations[0];
        assert_eq!(quota.subject, "request_bytes", "{path}");
        assert!(details.retry_info().is_none(), "{path}: it never fits");
        let metadata = &details.error_info().unwrap().metadata;
        assert_eq!((&metadata["needed"], &metadata["limit"]), (&"65537".into(), &"65536".into()));
    }
}

/// An order beyond a limit that stays is refused without the hint to try again; one beyond a limit that passes, with it.
#[tokio::test]
async fn requests_that_can_never_fit_have_no_retry_info() {
    let dir = tempfile::tempdir().unwrap();
    let hashes = [
        "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae 0", // foo
        "fcde2b2edba56bf408601fb721fe9b5c338d10ee429ea04fae5511b68fbf8fb9 9 4096", // bar
        "baa5a0964d3320fbc0c6a922140453c8513ea24ab8fd0577034804a967248096 1", // baz
    ];
    let tokens = hashes.iter().enumerate().map(|(i, hash)| format!("client{i} {hash}\n"));
    std::fs::write(dir.path().join("tokens"), tokens.collect::<String>()).unwrap();
    let tokens = dir.path().join("tokens");
    let flags = ["--tokens", tokens.to_str().unwrap(), "--memory", "64", "--active", "1"];
    let server = Server::start(&dir.path().join("jobs"), &flags);
    let channel = Channel::from_shared(server.url.clone()).unwrap().connect().await.unwrap();
    let ordered = async |token: &str, spec: JobSpec| {
        let mut request = Request::new(crate::common::server::order(spec));
        let value: MetadataValue<_> = format!("Bearer {token}").parse().unwrap();
        request.metadata_mut().insert("authorization", value);
        let mut client = api::job_service_client::JobServiceClient::new(channel.clone());
        client.create_job(request).await.map(drop)
    };
    let large = JobSpec { tile_size: 1024, ..spec(1, 4096, 4096, 1) };
    for (token, spec, resource) in [
        ("baz", large, "memory_bytes"),
        ("bar", spec(1, 64, 80, 1), "pixels"),
        ("foo", spec(1, 32, 32, 1), "queued_jobs"),
    ] {
        let status = ordered(token, spec).await.unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
        let details = status.get_error_details();
        assert_eq!(details.quota_failure().unwrap().violations[0].subject, resource, "{status}");
        assert!(details.retry_info().is_none(), "{status}");
    }
    // One runs, one waits, and the third has to wait for that.
    let mut refused = None;
    for seed in 0..3 {
        refused = ordered("baz", spec(seed, 512, 512, 1000)).await.err();
    }
    let status = refused.expect("one job may wait");
    assert!(status.get_error_details().retry_info().is_some(), "{status}");
}

/// Pages of models follow each other; a token that no page had is refused.
#[tokio::test]
async fn requests_for_pages_of_models_are_answered_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let other = fixture("net-b.safetensors");
    let server = Server::start(dir.path(), &["--model", other.to_str().unwrap()]);
    let channel = Channel::from_shared(server.url.clone()).unwrap().connect().await.unwrap();
    let mut models = ModelServiceClient::new(channel);
    let (mut names, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = api::ListModelsRequest { page_size: 1, page_token };
        let page = models.list_models(request).await.unwrap().into_inner();
        assert_eq!(page.models.len(), 1);
        names.extend(page.models.into_iter().map(|model| model.name));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(names, ["models/net-a", "models/net-b"]);
    for token in ["0", "2", "-1", "x"] {
        let request = api::ListModelsRequest { page_size: 1, page_token: token.into() };
        let status = models.list_models(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{token}");
    }
}
