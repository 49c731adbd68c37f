//! The codec of the generated services: tonic's, except that a malformed request is an error of its sender.

use prost::{Message, Name};
use tonic::{
    Code, Status,
    codec::{Codec, DecodeBuf, Decoder},
};
use tonic_prost::{ProstCodec, ProstEncoder};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::{ERROR_DOMAIN, descriptors};
use crate::error::{Error, Kind};

/// Encodes `T` and decodes `U` as protobuf.
#[derive(Debug)]
pub struct ApiCodec<T, U>(ProstCodec<T, U>);

impl<T, U> Default for ApiCodec<T, U> {
    fn default() -> Self {
        Self(ProstCodec::default())
    }
}

impl<T, U> Codec for ApiCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Name + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = ApiDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        self.0.encoder()
    }

    fn decoder(&mut self) -> Self::Decoder {
        ApiDecoder(std::marker::PhantomData)
    }
}

/// Decodes messages of one type. A malformed one is INVALID_ARGUMENT if it is a request, otherwise INTERNAL.
#[derive(Debug)]
pub struct ApiDecoder<U>(std::marker::PhantomData<U>);

impl<U: Message + Name + Default> Decoder for ApiDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        U::decode(buffer).map(Some).map_err(|cause| malformed(U::NAME, cause))
    }
}

/// The status of a malformed message of type `name`. It has no `BadRequest`: its field is unknown.
fn malformed(name: &'static str, cause: prost::DecodeError) -> Status {
    let (kind, code) = match descriptors::is_request(name) {
        true => (Kind::InvalidArgument, Code::InvalidArgument),
        false => (Kind::Internal, Code::Internal),
    };
    let error = Error::wrong(kind, name, "malformed", "a protobuf message").with_source(cause);
    let fields = error.detail().fields().into_iter();
    let fields = fields.filter_map(|(key, value)| Some((key, value.as_str()?.to_owned())));
    let mut details = ErrorDetails::new();
    let fields: std::collections::HashMap<_, _> = fields.collect();
    details.set_error_info(kind.name().to_ascii_uppercase(), ERROR_DOMAIN, fields);
    Status::with_error_details(code, error.report().to_string(), details)
}
