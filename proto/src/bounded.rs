//! The codec of every call: a request is looked over before memory is given to it.
//!
//! An empty message in a list takes two bytes on the wire and a hundred in memory, so that sixteen megabytes could become a
//! gigabyte. The walk follows the protocol's own description, counts what would be allocated one by one, and allocates nothing.
//!
//! **Invariant:** what the walk lets through has at most [`ITEMS_MAX`] messages, texts and entries of maps in it, however deep.

use crate::v1;
use bytes::Buf as _;
use prost::{Message, Name};
use prost_types::field_descriptor_proto::Type;
use prost_types::{DescriptorProto, FileDescriptorSet};
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::LazyLock;
use tonic::Status;
use tonic::codec::{BufferSettings, DecodeBuf, Decoder};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

/// Most parts of a request. The biggest that a worker makes is the report of 10,000 artifacts, at five parts each.
pub const ITEMS_MAX: usize = 100_000;
/// Deepest nesting; the protocol has six levels. The library refuses at a hundred.
const DEPTH_MAX: usize = 32;

/// What a request may not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bad {
    Malformed,
    TooMany,
    TooDeep,
}

impl From<Bad> for Status {
    fn from(bad: Bad) -> Self {
        match bad {
            Bad::Malformed => Self::invalid_argument("bad message: it is not what the protocol describes"),
            Bad::TooMany => Self::invalid_argument(format!("bad message: it has more than {ITEMS_MAX} parts")),
            Bad::TooDeep => Self::invalid_argument(format!("bad message: its parts are nested {DEPTH_MAX} deep")),
        }
    }
}

/// Reads a request of the farm, if its memory stays within bounds.
///
/// # Errors
/// INVALID_ARGUMENT.
pub fn decode<M: Message + Name + Default>(bytes: &[u8]) -> Result<M, Status> {
    check::<M>(bytes)?;
    M::decode(bytes).map_err(|error| Status::invalid_argument(format!("bad message: {error}")))
}

fn check<M: Name>(bytes: &[u8]) -> Result<(), Bad> {
    let shapes = &*SHAPES;
    match shapes.requests.get(&M::full_name()) {
        Some(shape) => shapes.walk(*shape, bytes, 0, &mut 0),
        // An answer, which is as long as the controller makes it.
        None => Ok(()),
    }
}

/// What can be in a message, as far as that takes memory.
#[derive(Clone, Copy, Debug)]
enum Part {
    /// Of that shape.
    Message(usize),
    /// A text or bytes.
    Text,
    /// A number, or a list of them.
    Number,
}

/// The messages of the protocol.
#[derive(Debug)]
struct Shapes {
    /// By the number of the field.
    shapes: Vec<BTreeMap<u32, Part>>,
    /// The shapes of those that are requests.
    requests: BTreeMap<String, usize>,
}

static SHAPES: LazyLock<Shapes> = LazyLock::new(|| Shapes::of(v1::DESCRIPTORS));

impl Shapes {
    fn of(descriptors: &[u8]) -> Self {
        let files = FileDescriptorSet::decode(descriptors).expect("the protocol describes itself").file;
        let mut messages = Vec::new();
        for file in &files {
            collect(&format!(".{}", file.package()), &file.message_type, &mut messages);
        }
        let index: BTreeMap<&str, usize> =
            messages.iter().enumerate().map(|(n, (name, _))| (name.as_str(), n)).collect();
        let shapes = messages.iter().map(|(_, message)| shape(message, &index)).collect();
        let methods = files.iter().flat_map(|file| &file.service).flat_map(|service| &service.method);
        let inputs = methods.filter_map(|method| {
            let name = method.input_type();
            Some((name.trim_start_matches('.').to_owned(), *index.get(name)?))
        });
        Self { requests: inputs.collect(), shapes }
    }

    fn walk(&self, shape: usize, mut bytes: &[u8], depth: usize, items: &mut usize) -> Result<(), Bad> {
        if depth > DEPTH_MAX {
            return Err(Bad::TooDeep);
        }
        let fields = self.shapes.get(shape).ok_or(Bad::Malformed)?;
        while !bytes.is_empty() {
            let key = varint(&mut bytes)?;
            let field = u32::try_from(key >> 3).map_err(|_| Bad::Malformed)?;
            match key & 7 {
                0 => drop(varint(&mut bytes)?),
                1 => skip(&mut bytes, 8)?,
                5 => skip(&mut bytes, 4)?,
                2 => {
                    let length = usize::try_from(varint(&mut bytes)?).map_err(|_| Bad::Malformed)?;
                    let (content, rest) = bytes.split_at_checked(length).ok_or(Bad::Malformed)?;
                    bytes = rest;
                    let part = fields.get(&field);
                    if matches!(part, Some(Part::Message(_) | Part::Text)) {
                        *items += 1;
                        if *items > ITEMS_MAX {
                            return Err(Bad::TooMany);
                        }
                    }
                    if let Some(Part::Message(inner)) = part {
                        self.walk(*inner, content, depth + 1, items)?;
                    }
                }
                // Groups: nobody has spoken them for long, and this protocol never did.
                _ => return Err(Bad::Malformed),
            }
        }
        Ok(())
    }
}

/// Every message with its full name, those within others too.
fn collect(scope: &str, messages: &[DescriptorProto], all: &mut Vec<(String, DescriptorProto)>) {
    for message in messages {
        let name = format!("{scope}.{}", message.name());
        collect(&name, &message.nested_type, all);
        all.push((name, message.clone()));
    }
}

fn shape(message: &DescriptorProto, index: &BTreeMap<&str, usize>) -> BTreeMap<u32, Part> {
    let fields = message.field.iter().map(|field| {
        let part = match field.r#type() {
            // Of the well-known types, which have no lists in them, only the number counts.
            Type::Message => index.get(field.type_name()).map_or(Part::Text, |shape| Part::Message(*shape)),
            Type::String | Type::Bytes => Part::Text,
            _ => Part::Number,
        };
        (u32::try_from(field.number()).unwrap_or_default(), part)
    });
    fields.collect()
}

fn varint(bytes: &mut &[u8]) -> Result<u64, Bad> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first().ok_or(Bad::Malformed)?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Bad::Malformed)
}

fn skip(bytes: &mut &[u8], length: usize) -> Result<(), Bad> {
    *bytes = bytes.get(length..).ok_or(Bad::Malformed)?;
    Ok(())
}

/// The codec.
#[derive(Debug)]
pub struct Codec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for Codec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> tonic::codec::Codec for Codec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Name + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = Bounded<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::default().encoder()
    }

    fn decoder(&mut self) -> Self::Decoder {
        Bounded(ProstCodec::<T, U>::default().decoder())
    }
}

/// Looks a message over, and reads it.
#[derive(Debug)]
pub struct Bounded<U>(ProstDecoder<U>);

impl<U: Message + Name + Default> Decoder for Bounded<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        let bytes = buf.chunk();
        // The library gathers a message in one piece before it is read.
        if bytes.len() != buf.remaining() {
            return Err(Status::internal("a message came in pieces"));
        }
        check::<U>(bytes)?;
        self.0.decode(buf)
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.0.buffer_settings()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn refused<M: Message + Name + Default + std::fmt::Debug>(bytes: &[u8]) -> String {
        decode::<M>(bytes).unwrap_err().message().to_owned()
    }

    #[test]
    fn what_is_within_the_bounds_is_read() {
        let files = HashMap::from([("a".to_owned(), "b".to_owned())]);
        let request = v1::SubmitRequest { pipeline: "name: x".to_owned(), files, ..Default::default() };
        assert_eq!(decode::<v1::SubmitRequest>(&request.encode_to_vec()).unwrap(), request);
        let report = v1::ReportRequest { artifacts: vec![v1::Artifact::default(); 10_000], ..Default::default() };
        assert_eq!(decode::<v1::ReportRequest>(&report.encode_to_vec()).unwrap(), report);
    }

    #[test]
    fn lists_without_end_are_refused_however_deep() {
        let artifacts = vec![v1::Artifact::default(); ITEMS_MAX + 1];
        let report = v1::ReportRequest { artifacts, ..Default::default() };
        assert!(refused::<v1::ReportRequest>(&report.encode_to_vec()).contains("parts"));
        let image = Some(v1::Image { layers: vec![v1::Blob::default(); ITEMS_MAX], ..Default::default() });
        let report = v1::ReportRequest { image, ..Default::default() };
        assert!(refused::<v1::ReportRequest>(&report.encode_to_vec()).contains("parts"));
        let platforms = vec![String::new(); ITEMS_MAX + 1];
        let submit = v1::SubmitRequest { platforms, ..Default::default() };
        assert!(refused::<v1::SubmitRequest>(&submit.encode_to_vec()).contains("parts"));
    }

    #[test]
    fn what_does_not_parse_is_refused() {
        for bytes in
            [&[0xff; 20][..], &[0x0a, 5, 1], &[0x0b, 0x0c], &[0x09, 1], &[0x0d, 1], &[0x0e], &[0x0a, 2, 0xc3, 0x28]]
        {
            assert!(refused::<v1::SubmitRequest>(bytes).starts_with("bad message"), "{bytes:?}");
        }
    }

    #[test]
    fn every_request_is_known_and_answers_are_not_counted() {
        assert!(SHAPES.requests.len() > 15);
        assert!(SHAPES.requests.contains_key(&v1::WorkerMessage::full_name()));
        let answer = v1::SignPartsResponse { urls: vec![String::new(); ITEMS_MAX + 1] };
        assert!(decode::<v1::SignPartsResponse>(&answer.encode_to_vec()).is_ok());
    }
}
