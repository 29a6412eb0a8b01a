//! The rules, as text for `iptables-restore`.

use super::NetworkConfig;
use super::peer::{Denied, Network};
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Where most clouds have their metadata.
const LINK_LOCAL: &str = "169.254.0.0/16";

/// Where a machine is told of itself outside of [`LINK_LOCAL`]: Azure
/// (<https://learn.microsoft.com/azure/virtual-network/what-is-ip-address-168-63-129-16>), Alibaba Cloud
/// (<https://www.alibabacloud.com/help/ecs/user-guide/view-instance-metadata>), and Oracle Cloud's older machines
/// (<https://docs.oracle.com/iaas/compute-iaas-cloud/stcsg/retrieving-instance-metadata.html>).
pub(super) const METADATA: [Ipv4Addr; 3] =
    [Ipv4Addr::new(168, 63, 129, 16), Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(192, 0, 0, 192)];

/// Where names are asked for.
const DNS_PORT: u16 = 53;

/// What becomes of packets that come from a bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    chain: String,
    bridge: String,
    v4: String,
}

impl Rules {
    /// For packets from `bridge`. `subnets` are the bridge's own: steps do not reach each other. `controller` is where that is.
    pub fn new(
        chain: String,
        bridge: String,
        config: &NetworkConfig,
        name_servers: &[Ipv4Addr],
        subnets: &[Network],
        controller: &[SocketAddr],
    ) -> Self {
        let mut lines = vec!["-m conntrack --ctstate RELATED,ESTABLISHED -j RETURN".to_owned()];
        for server in name_servers {
            lines.extend(["udp", "tcp"].map(|by| format!("-d {server}/32 -p {by} --dport {DNS_PORT} -j RETURN")));
        }
        for allowed in &config.allow {
            let port = allowed.port.map(|port| format!(" -p tcp --dport {port}")).unwrap_or_default();
            lines.push(format!("-d {}{port} -j RETURN", allowed.network));
        }
        for denied in &config.deny {
            match denied {
                Denied::Host => lines.extend(
                    ["LOCAL", "BROADCAST", "MULTICAST"].map(|kind| format!("-m addrtype --dst-type {kind} -j DROP")),
                ),
                Denied::LinkLocal => lines.push(format!("-d {LINK_LOCAL} -j DROP")),
                Denied::Metadata => lines.extend(METADATA.map(|address| format!("-d {address}/32 -j DROP"))),
                Denied::Controller => lines.extend(controller.iter().filter_map(|at| {
                    let to = match at.ip() {
                        // Whatever of its addresses steps know this host by.
                        ip if ip.is_loopback() => "-m addrtype --dst-type LOCAL".to_owned(),
                        IpAddr::V4(ip) => format!("-d {ip}/32"),
                        // Steps have no IPv6.
                        IpAddr::V6(_) => return None,
                    };
                    Some(format!("{to} -p tcp --dport {} -j DROP", at.port()))
                })),
                Denied::Network(network) => lines.push(format!("-d {network} -j DROP")),
            }
        }
        lines.extend(subnets.iter().map(|subnet| format!("-d {subnet} -j DROP")));
        let v4 = table(&chain, lines);
        Self { chain, bridge, v4 }
    }

    /// Their chain.
    pub fn chain(&self) -> &str {
        &self.chain
    }

    /// The bridge.
    pub fn bridge(&self) -> &str {
        &self.bridge
    }

    /// Replaces the chain at one blow. Nothing sends packets through it yet.
    pub(super) fn v4(&self) -> &str {
        &self.v4
    }

    /// The bridge has no IPv6; a step that makes its own packets is not heard.
    pub(super) fn v6(&self) -> String {
        table(&self.chain, ["-j DROP".to_owned()])
    }

    /// What sends the packets through the chain.
    pub(super) fn jump(&self) -> [&str; 5] {
        ["PREROUTING", "-i", &self.bridge, "-j", &self.chain]
    }
}

fn table(chain: &str, lines: impl IntoIterator<Item = String>) -> String {
    let mut text = format!("*mangle\n:{chain} - [0:0]\n");
    for line in lines {
        writeln!(text, "-A {chain} {line}").expect("a string takes text");
    }
    text + "COMMIT\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::peer::Allowed;

    #[test]
    fn exceptions_come_before_what_is_denied() {
        let config = NetworkConfig {
            deny: ["host", "link-local", "metadata", "controller", "10.0.0.0/8"]
                .map(|text| Denied::try_from(text.to_owned()).unwrap())
                .to_vec(),
            allow: ["10.0.0.5", "172.17.0.1:3128"].map(|text| Allowed::try_from(text.to_owned()).unwrap()).to_vec(),
            ..NetworkConfig::default()
        };
        let rules = Rules::new(
            "C".to_owned(),
            "b0".to_owned(),
            &config,
            &["169.254.169.253".parse().unwrap()],
            &["172.20.0.0/16".parse().unwrap()],
            &["192.0.2.7:7411", "127.0.0.1:7412", "[2001:db8::1]:7411"].map(|text| text.parse().unwrap()),
        );
        let want = "*mangle\n:C - [0:0]\n\
            -A C -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN\n\
            -A C -d 169.254.169.253/32 -p udp --dport 53 -j RETURN\n\
            -A C -d 169.254.169.253/32 -p tcp --dport 53 -j RETURN\n\
            -A C -d 10.0.0.5/32 -j RETURN\n\
            -A C -d 172.17.0.1/32 -p tcp --dport 3128 -j RETURN\n\
            -A C -m addrtype --dst-type LOCAL -j DROP\n\
            -A C -m addrtype --dst-type BROADCAST -j DROP\n\
            -A C -m addrtype --dst-type MULTICAST -j DROP\n\
            -A C -d 169.254.0.0/16 -j DROP\n\
            -A C -d 168.63.129.16/32 -j DROP\n\
            -A C -d 100.100.100.200/32 -j DROP\n\
            -A C -d 192.0.0.192/32 -j DROP\n\
            -A C -d 192.0.2.7/32 -p tcp --dport 7411 -j DROP\n\
            -A C -m addrtype --dst-type LOCAL -p tcp --dport 7412 -j DROP\n\
            -A C -d 10.0.0.0/8 -j DROP\n\
            -A C -d 172.20.0.0/16 -j DROP\n\
            COMMIT\n";
        assert_eq!(rules.v4(), want);
        assert_eq!(rules.v6(), "*mangle\n:C - [0:0]\n-A C -j DROP\nCOMMIT\n");
    }
}
