//! Where the controller is: steps never speak to the farm.

use std::io;
use std::net::{IpAddr, SocketAddr};
use tonic::transport::Uri;

/// The controller's host, as the settings name it, and its port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Controller {
    host: String,
    port: u16,
}

impl Controller {
    /// Where this URL leads; `None` if it is no URL, or leads no further than to this host's loopback, where no bridge leads.
    pub fn of(url: &str) -> Option<Self> {
        let url: Uri = url.parse().ok()?;
        let usual = if url.scheme_str() == Some("http") { 80 } else { 443 };
        // As a URL has it, an address of IPv6 stands in brackets.
        let host = url.host()?.trim_start_matches('[').trim_end_matches(']').to_owned();
        let is_loopback = host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
        (!is_loopback).then(|| Self { host, port: url.port_u16().unwrap_or(usual) })
    }

    /// Its addresses as of now, in order; at least one.
    ///
    /// # Errors
    /// If the name cannot be looked up.
    pub async fn look_up(&self) -> io::Result<Vec<SocketAddr>> {
        let found = tokio::net::lookup_host((self.host.as_str(), self.port)).await?;
        let mut found: Vec<SocketAddr> = found.map(|at| SocketAddr::new(at.ip().to_canonical(), at.port())).collect();
        found.sort_unstable();
        found.dedup();
        if found.is_empty() { Err(io::Error::from(io::ErrorKind::NotFound)) } else { Ok(found) }
    }

    /// Its name.
    pub fn host(&self) -> &str {
        &self.host
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_url_leads_to_addresses() {
        for (url, want) in [
            ("https://192.0.2.7:7411", "192.0.2.7:7411"),
            ("https://192.0.2.7", "192.0.2.7:443"),
            ("http://192.0.2.7/", "192.0.2.7:80"),
            ("https://[2001:db8::1]:7411", "[2001:db8::1]:7411"),
            ("https://[::ffff:192.0.2.7]:7411", "192.0.2.7:7411"),
        ] {
            let found = Controller::of(url).unwrap().look_up().await.unwrap();
            assert_eq!(found, [want.parse().unwrap()], "{url}");
        }
        for url in ["not a url", "https://127.0.0.1:7411", "https://localhost:7411", "https://[::1]:7411"] {
            assert_eq!(Controller::of(url), None, "{url}");
        }
        Controller::of("https://nowhere.invalid:7411").unwrap().look_up().await.unwrap_err();
    }
}
