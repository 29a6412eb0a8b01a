//! The farm's protocol, `railyard.v1`: generated code, and the codec that it is read by.
//!
//! Domain types live in `railyard-common`; `railyard-service` converts between the two at the edge.

pub mod bounded;
mod quiet;

/// Version 1 of the protocol.
#[allow(missing_docs, clippy::all)]
pub mod v1 {
    tonic::include_proto!("railyard.v1");

    /// The encoded `FileDescriptorSet` of the protocol, for gRPC reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
}
