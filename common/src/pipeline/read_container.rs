//! Reads what a step says about its container: limits, retries, devices and rights.

use super::diagnostic::quote;
use super::limits::{
    DISK_MAX_BYTES, LEASE_TTL_MAX_SECS, LEASE_TTL_MIN_SECS, MEMORY_MAX_BYTES, MEMORY_MIN_BYTES, RETRIES_MAX,
    TIMEOUT_MAX_SECS,
};
use super::model::Step;
use super::reader::{Fields, Reader};
use super::values;
use super::yaml::Node;
use crate::job::{Capacity, Device, HostPath};
use std::ops::RangeInclusive;

pub(super) const RESOURCE_FIELDS: [&str; 3] = ["cpu", "memory", "disk"];

impl Reader<'_> {
    /// Limits, retries and what the container may do.
    pub(super) fn container(&mut self, fields: &Fields<'_>, step: &mut Step) {
        step.commit = self.flag(fields.get("commit"), "`commit`");
        step.privileged = self.flag(fields.get("privileged"), "`privileged`");
        if let Some(node) = fields.get("resources") {
            self.resources(node, &mut step.resources);
        }
        let timeouts = 1..=TIMEOUT_MAX_SECS;
        self.duration(fields, "timeout", timeouts.clone(), &mut step.timeout_secs);
        self.duration(fields, "silence_timeout", timeouts, &mut step.silence_timeout_secs);
        self.duration(fields, "lease_ttl", LEASE_TTL_MIN_SECS..=LEASE_TTL_MAX_SECS, &mut step.lease_ttl_secs);
        if let Some(node) = fields.get("retries") {
            step.retries = self.parsed(node, "`retries`", |text| values::count(text, RETRIES_MAX)).unwrap_or(0);
        }
        step.devices = fields.get("devices").map(|node| self.devices(node)).unwrap_or_default();
        step.capabilities = fields.get("capabilities").map(|node| self.capabilities(node)).unwrap_or_default();
        step.host_paths = fields.get("host_paths").map(|node| self.host_paths(node)).unwrap_or_default();
        step.secrets = fields.get("secrets").map(|node| self.secrets(node, &step.env)).unwrap_or_default();
        if let Some(node) = fields.get("network") {
            let parse = |text: &str| match text {
                "none" => Ok(true),
                "default" => Ok(false),
                _ => Err("`none` or `default`".to_owned()),
            };
            step.network_none = self.parsed(node, "`network`", parse).unwrap_or(false);
        }
    }

    fn duration(&mut self, fields: &Fields<'_>, name: &str, range: RangeInclusive<u64>, secs: &mut u64) {
        if let Some(node) = fields.get(name) {
            let given = self.parsed(node, &format!("`{name}`"), |text| values::duration_secs(text, range));
            *secs = given.unwrap_or(*secs);
        }
    }

    fn resources(&mut self, node: &Node, resources: &mut Capacity) {
        let Some(fields) = self.fields(node, "`resources`", &RESOURCE_FIELDS) else { return };
        if let Some(millis) = fields.get("cpu").and_then(|node| self.parsed(node, "`cpu`", values::cpu_millis)) {
            resources.cpu_millis = millis;
        }
        let mut size = |name: &str, range: RangeInclusive<u64>, bytes: &mut u64| {
            if let Some(node) = fields.get(name) {
                let given = self.parsed(node, &format!("`{name}`"), |text| values::size_bytes(text, range));
                *bytes = given.unwrap_or(*bytes);
            }
        };
        size("memory", MEMORY_MIN_BYTES..=MEMORY_MAX_BYTES, &mut resources.memory_bytes);
        size("disk", 1..=DISK_MAX_BYTES, &mut resources.disk_bytes);
    }

    fn devices(&mut self, node: &Node) -> Vec<Device> {
        let mut devices: Vec<Device> = Vec::new();
        for (_, item) in self.texts(node, "`devices`") {
            let Some(device) = self.parsed(item, "a device", values::device) else { continue };
            if devices.iter().any(|other| other.path == device.path) {
                self.problems.add(item.at, format!("{} stands in `devices` twice", quote(&device.path)));
            } else {
                devices.push(device);
            }
        }
        devices
    }

    fn host_paths(&mut self, node: &Node) -> Vec<HostPath> {
        let mut paths: Vec<HostPath> = Vec::new();
        for (_, item) in self.texts(node, "`host_paths`") {
            let Some(path) = self.parsed(item, "a host path", values::host_path) else { continue };
            if paths.iter().any(|other| other.target == path.target) {
                self.problems.add(item.at, format!("two of `host_paths` are mounted at {}", quote(&path.target)));
            } else {
                paths.push(path);
            }
        }
        paths
    }

    fn capabilities(&mut self, node: &Node) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for (text, item) in self.texts(node, "`capabilities`") {
            match values::capability(text) {
                Err(known) => {
                    let message = format!("{} is not a Linux capability", quote(text));
                    let bare = text.strip_prefix("CAP_").unwrap_or(text);
                    self.problems.add_unknown(item.at, message, bare, "capabilities", &known);
                }
                Ok(name) if names.contains(&name) => {
                    self.problems.add(item.at, format!("{} stands in `capabilities` twice", quote(&name)));
                }
                Ok(name) => names.push(name),
            }
        }
        names
    }
}
