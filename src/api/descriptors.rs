//! The compiled proto files, and questions about them.

use std::{collections::VecDeque, sync::LazyLock};

use prost::Message as _;
use prost_types::{
    DescriptorProto, FieldDescriptorProto, FileDescriptorSet, MethodDescriptorProto,
    ServiceDescriptorProto,
};

/// The compiled proto files, for reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Package of this API.
const PACKAGE: &str = "tessera.v1";

static FILES: LazyLock<FileDescriptorSet> =
    LazyLock::new(|| FileDescriptorSet::decode(DESCRIPTORS).unwrap_or_default());

/// The services and their methods.
pub fn methods()
-> impl Iterator<Item = (&'static ServiceDescriptorProto, &'static MethodDescriptorProto)> {
    let services = FILES.file.iter().flat_map(|file| &file.service);
    services.flat_map(|service| service.method.iter().map(move |method| (service, method)))
}

/// The paths of all methods, such as `/tessera.v1.JobService/GetJob`.
pub fn method_paths() -> impl Iterator<Item = String> {
    methods().map(|(service, method)| path(service, method))
}

fn path(service: &ServiceDescriptorProto, method: &MethodDescriptorProto) -> String {
    format!("/{PACKAGE}.{}/{}", service.name(), method.name())
}

/// True if the method with this path takes a stream of messages.
pub fn takes_stream(method_path: &str) -> bool {
    let mut streaming = methods().filter(|(_, method)| method.client_streaming());
    streaming.any(|(service, method)| path(service, method) == method_path)
}

/// True if messages of the type `name` are requests.
pub fn is_request(name: &str) -> bool {
    methods().any(|(_, method)| local(method.input_type()) == Some(name))
}

/// The message type `name` of this API.
pub fn message(name: &str) -> Option<&'static DescriptorProto> {
    let mut messages = FILES.file.iter().filter(|file| file.package() == PACKAGE);
    messages.find_map(|file| file.message_type.iter().find(|message| message.name() == name))
}

/// The message type of `field`, if it is one of this API.
pub fn message_of(field: &FieldDescriptorProto) -> Option<&'static DescriptorProto> {
    message(local(field.type_name())?)
}

/// The path from the message type `root` to the field `field`: `spec.width` for `width` in a `CreateJobRequest`. Of several
/// the one with the fewest steps. `field` may be a path itself; the key of a map is its last part.
pub fn field_path(root: &str, field: &str) -> Option<String> {
    let (first, rest) = field.split_once('.').map_or((field, None), |(a, b)| (a, Some(b)));
    let mut queue = VecDeque::from([(message(root)?, String::new())]);
    while let Some((message, prefix)) = queue.pop_front() {
        if let Some(found) = message.field.iter().find(|field| field.name() == first) {
            let path = format!("{prefix}{first}");
            return match rest {
                None => Some(path),
                // The rest is a key.
                Some(rest) if is_map(message, found) => Some(format!("{path}.{rest}")),
                Some(rest) => {
                    Some(format!("{path}.{}", field_path(message_of(found)?.name(), rest)?))
                }
            };
        }
        let parts = message.field.iter().filter_map(|part| Some((part, message_of(part)?)));
        queue.extend(parts.map(|(part, message)| (message, format!("{prefix}{}.", part.name()))));
    }
    None
}

/// True if `field` of `message` is a map: its entries are a nested type.
fn is_map(message: &DescriptorProto, field: &FieldDescriptorProto) -> bool {
    let name = field.type_name().rsplit('.').next().unwrap_or_default();
    let mut nested = message.nested_type.iter().filter(|nested| nested.name() == name);
    nested.any(|nested| nested.options.as_ref().is_some_and(|options| options.map_entry()))
}

/// A type's name without the package, if it is of this API.
fn local(name: &str) -> Option<&str> {
    name.strip_prefix('.')?.strip_prefix(PACKAGE)?.strip_prefix('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn field_paths_begin_at_the_request() {
        for (root, field, path) in [
            ("CreateJobRequest", "width", Some("spec.width")),
            ("GenerateRequest", "width", Some("job.spec.width")),
            ("CreateJobRequest", "viewport", Some("viewport")),
            ("GenerateRequest", "viewport.x", Some("job.viewport.x")),
            ("WatchJobRequest", "tile_format", Some("options.tile_format")),
            ("GetJobRequest", "name", Some("name")),
            ("GetJobRequest", "width", None),
            ("CreateJobRequest", "viewport.depth", None),
            ("GenerateRequest", "labels.time", Some("job.spec.labels.time")),
            ("Unknown", "name", None),
        ] {
            assert_eq!(field_path(root, field).as_deref(), path, "{field} of {root}");
        }
    }

    #[test]
    fn requests_are_the_inputs_of_methods() {
        assert!(is_request("CreateJobRequest") && is_request("ListModelsRequest"));
        assert!(!is_request("CreateJobResponse") && !is_request("JobSpec") && !is_request(""));
        assert!(takes_stream("/tessera.v1.JobService/EditPicture"));
        assert!(!takes_stream("/tessera.v1.JobService/GetJob"));
        assert!(method_paths().any(|path| path == "/tessera.v1.JobService/GetJob"));
    }
}
