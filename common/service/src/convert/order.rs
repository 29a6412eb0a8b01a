//! What a worker is told to do.

use super::{
    BadMessage, ENV_VALUE_MAX_BYTES, FromProto, LIST_MAX_LEN, SCRIPT_MAX_BYTES, TEXT_MAX_BYTES, ToProto, all, at_most,
    list, parsed, parsed_if_given, required,
};
use railyard_common::blob::{Artifact, Image};
use railyard_common::job::{Device, HostPath, OutputSpec, RunSpec, SecretRef};
use railyard_common::order::{InputArtifact, Order, OrderImage};
use railyard_proto::v1;
use railyard_proto::v1::lease_order;
use std::sync::Arc;

impl ToProto for OutputSpec {
    type Proto = v1::OutputSpec;

    fn to_proto(&self) -> v1::OutputSpec {
        v1::OutputSpec {
            glob: self.glob.to_string(),
            publish: self.publish.as_ref().map(ToString::to_string).unwrap_or_default(),
            optional: self.optional,
            // A worker that does not know the field does the same without it.
            compress: if self.compress.is_auto() { String::new() } else { self.compress.to_string() },
        }
    }
}

impl FromProto<v1::OutputSpec> for OutputSpec {
    fn from_proto(proto: v1::OutputSpec) -> Result<Self, BadMessage> {
        Ok(Self {
            glob: parsed("glob", &proto.glob)?,
            publish: parsed_if_given("publish", &proto.publish)?,
            // It is the controller's to know.
            publish_by_channel: None,
            optional: proto.optional,
            compress: parsed_if_given("compress", &proto.compress)?.unwrap_or_default(),
        })
    }
}

impl ToProto for Device {
    type Proto = v1::Device;

    fn to_proto(&self) -> v1::Device {
        v1::Device { path: self.path.clone(), optional: self.optional }
    }
}

impl FromProto<v1::Device> for Device {
    fn from_proto(proto: v1::Device) -> Result<Self, BadMessage> {
        absolute("path", &proto.path)?;
        if !proto.path.starts_with("/dev/") {
            return Err(BadMessage::new("path", format!("`{}` is not below /dev", proto.path)));
        }
        Ok(Self { path: proto.path, optional: proto.optional })
    }
}

impl ToProto for HostPath {
    type Proto = v1::HostPath;

    fn to_proto(&self) -> v1::HostPath {
        v1::HostPath { source: self.source.clone(), target: self.target.clone(), writable: self.writable }
    }
}

impl FromProto<v1::HostPath> for HostPath {
    fn from_proto(proto: v1::HostPath) -> Result<Self, BadMessage> {
        absolute("source", &proto.source)?;
        absolute("target", &proto.target)?;
        Ok(Self { source: proto.source, target: proto.target, writable: proto.writable })
    }
}

impl ToProto for InputArtifact {
    type Proto = v1::InputArtifact;

    fn to_proto(&self) -> v1::InputArtifact {
        v1::InputArtifact { mount_path: self.mount_path.clone(), artifact: Some(self.artifact.to_proto()) }
    }
}

impl FromProto<v1::InputArtifact> for InputArtifact {
    fn from_proto(proto: v1::InputArtifact) -> Result<Self, BadMessage> {
        absolute("mount_path", &proto.mount_path)?;
        Ok(Self { mount_path: proto.mount_path, artifact: required("artifact", proto.artifact)? })
    }
}

impl ToProto for SecretRef {
    type Proto = v1::SecretRef;

    fn to_proto(&self) -> v1::SecretRef {
        let env = self.env.clone().unwrap_or_default();
        v1::SecretRef { name: self.name.to_string(), env, optional: self.optional }
    }
}

impl FromProto<v1::SecretRef> for SecretRef {
    fn from_proto(proto: v1::SecretRef) -> Result<Self, BadMessage> {
        // It is written into a script of the worker's own.
        if !proto.env.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            return Err(BadMessage::new("env", "it is not the name of an environment variable"));
        }
        let env = Some(proto.env).filter(|env| !env.is_empty());
        env.as_deref().map_or(Ok(()), |env| short_text("env", env))?;
        Ok(Self { name: parsed("name", &proto.name)?, env, optional: proto.optional })
    }
}

impl ToProto for RunSpec {
    type Proto = v1::RunSpec;

    fn to_proto(&self) -> v1::RunSpec {
        v1::RunSpec {
            script: self.script.clone(),
            env: self.env.clone().into_iter().collect(),
            outputs: all(&self.outputs),
            commit: self.commit,
            resources: Some(self.resources.to_proto()),
            timeout_secs: self.timeout_secs,
            silence_timeout_secs: self.silence_timeout_secs,
            privileged: self.privileged,
            devices: all(&self.devices),
            capabilities: self.capabilities.clone(),
            network_none: self.network_none,
            host_paths: all(&self.host_paths),
            secrets: all(&self.secrets),
        }
    }
}

impl FromProto<v1::RunSpec> for RunSpec {
    fn from_proto(proto: v1::RunSpec) -> Result<Self, BadMessage> {
        at_most("script", proto.script.len(), SCRIPT_MAX_BYTES, "bytes")?;
        at_most("env", proto.env.len(), LIST_MAX_LEN, "entries")?;
        for (key, value) in &proto.env {
            check_env(key, value)?;
        }
        at_most("capabilities", proto.capabilities.len(), LIST_MAX_LEN, "entries")?;
        for (n, capability) in proto.capabilities.iter().enumerate() {
            short_text(&format!("capabilities[{n}]"), capability)?;
        }
        if proto.timeout_secs == 0 {
            return Err(BadMessage::new("timeout_secs", "it is 0; every script has a time limit"));
        }
        Ok(Self {
            script: proto.script,
            env: proto.env.into_iter().collect(),
            outputs: list("outputs", proto.outputs)?,
            commit: proto.commit,
            resources: required("resources", proto.resources)?,
            timeout_secs: proto.timeout_secs,
            silence_timeout_secs: proto.silence_timeout_secs,
            privileged: proto.privileged,
            devices: list("devices", proto.devices)?,
            capabilities: proto.capabilities,
            network_none: proto.network_none,
            host_paths: list("host_paths", proto.host_paths)?,
            secrets: list("secrets", proto.secrets)?,
        })
    }
}

impl ToProto for Order {
    type Proto = v1::LeaseOrder;

    fn to_proto(&self) -> v1::LeaseOrder {
        let image = match &self.image {
            OrderImage::Registry(reference) => lease_order::Image::Registry(reference.clone()),
            OrderImage::Image(image) => lease_order::Image::Committed(image.to_proto()),
            OrderImage::Import(artifact) => lease_order::Image::Import(artifact.to_proto()),
        };
        v1::LeaseOrder {
            lease: Some(self.lease.to_proto()),
            build: self.build.to_string(),
            job: self.job.to_string(),
            ttl_millis: self.ttl_millis,
            image: Some(image),
            inputs: all(&self.inputs),
            run: Some(self.run.to_proto()),
            traceparent: self.traceparent.clone(),
        }
    }
}

impl FromProto<v1::LeaseOrder> for Order {
    fn from_proto(proto: v1::LeaseOrder) -> Result<Self, BadMessage> {
        if proto.ttl_millis == 0 {
            return Err(BadMessage::new("ttl_millis", "it is 0; such a lease is over before it begins"));
        }
        at_most("traceparent", proto.traceparent.len(), TEXT_MAX_BYTES, "bytes")?;
        Ok(Self {
            lease: required("lease", proto.lease)?,
            build: parsed("build", &proto.build)?,
            job: parsed("job", &proto.job)?,
            ttl_millis: proto.ttl_millis,
            image: required("image", proto.image)?,
            inputs: list("inputs", proto.inputs)?,
            run: Arc::new(required("run", proto.run)?),
            traceparent: proto.traceparent,
        })
    }
}

impl FromProto<lease_order::Image> for OrderImage {
    fn from_proto(proto: lease_order::Image) -> Result<Self, BadMessage> {
        match proto {
            lease_order::Image::Registry(reference) => {
                short_text("registry", &reference)?;
                Ok(Self::Registry(reference))
            }
            lease_order::Image::Committed(image) => {
                Ok(Self::Image(Image::from_proto(image).map_err(|bad| bad.within("committed"))?))
            }
            lease_order::Image::Import(artifact) => {
                Ok(Self::Import(Artifact::from_proto(artifact).map_err(|bad| bad.within("import"))?))
            }
        }
    }
}

/// Neither empty nor long, and nothing in it that could end an argument or a line.
fn short_text(field: &str, text: &str) -> Result<(), BadMessage> {
    at_most(field, text.len(), TEXT_MAX_BYTES, "bytes")?;
    if text.is_empty() {
        return Err(BadMessage::new(field, "it is empty"));
    }
    if text.chars().any(char::is_control) {
        return Err(BadMessage::new(field, "it has a control character"));
    }
    Ok(())
}

/// An absolute path in the container that cannot climb.
fn absolute(field: &str, path: &str) -> Result<(), BadMessage> {
    short_text(field, path)?;
    if !path.starts_with('/') {
        return Err(BadMessage::new(field, format!("`{path}` is not absolute")));
    }
    if path.split('/').any(|part| part == "..") {
        return Err(BadMessage::new(field, format!("`{path}` has a `..` part")));
    }
    Ok(())
}

fn check_env(key: &str, value: &str) -> Result<(), BadMessage> {
    short_text("env", key)?;
    if key.contains('=') {
        return Err(BadMessage::new("env", format!("`{key}` is not a variable's name: it has a `=`")));
    }
    at_most(&format!("env.{key}"), value.len(), ENV_VALUE_MAX_BYTES, "bytes")?;
    if value.contains('\0') {
        return Err(BadMessage::new(format!("env.{key}"), "it has a NUL byte"));
    }
    Ok(())
}
