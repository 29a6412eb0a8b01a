//! Binds the length and the checksum of a part to its presigned URL, which the store's client library does not do.
//!
//! The library signs the URL for its host. Here the same URL is signed again, for its host, the `Content-Length` and the
//! `Content-MD5`: the service refuses any other announcement before it takes the first byte.
//! (<https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-query-string-auth.html>)

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};

const SIGNED_HEADERS: &str = "X-Amz-SignedHeaders";
const SIGNATURE: &str = "X-Amz-Signature";

/// A URL that was presigned for its host only, signed for these headers as well (names in lower case, ascending, before `host`).
/// `None` if it was not presigned as expected.
pub(super) fn sign_again(method: &str, url: &str, headers: &[(&str, String)], secret_key: &str) -> Option<String> {
    let (address, query) = url.split_once('?')?;
    let (host, path) = address.split_once("://")?.1.split_once('/')?;
    let value = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    let (date, credential) = (value("X-Amz-Date")?, value("X-Amz-Credential")?);
    // The key's id, the day, the region, the service and a fixed word; the id may have a slash of its own.
    let mut scope: Vec<&str> = credential.rsplitn(5, "%2F").take(4).collect();
    scope.reverse();

    let names = headers.iter().map(|(name, _)| *name).chain(["host"]).collect::<Vec<_>>();
    let signed_headers = format!("{SIGNED_HEADERS}={}", names.join("%3B"));
    let kept = query.split('&').filter(|pair| !pair.starts_with(SIGNED_HEADERS) && !pair.starts_with(SIGNATURE));
    let mut pairs: Vec<(&str, &str)> =
        kept.chain([signed_headers.as_str()]).filter_map(|it| it.split_once('=')).collect();
    pairs.sort_unstable();
    let query = pairs.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&");

    let lines: String = headers.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
    let request = format!("{method}\n/{path}\n{query}\n{lines}host:{host}\n\n{}\nUNSIGNED-PAYLOAD", names.join(";"));
    let digest = hex::encode(Sha256::digest(request));
    let text = format!("AWS4-HMAC-SHA256\n{date}\n{}\n{digest}", scope.join("/"));
    let key = scope.iter().fold(format!("AWS4{secret_key}").into_bytes(), |key, part| mac(&key, part));
    Some(format!("{address}?{query}&{SIGNATURE}={}", hex::encode(mac(&key, &text))))
}

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the service's documentation.
    const SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
    const URL: &str = "https://examplebucket.s3.amazonaws.com/test.txt?X-Amz-Algorithm=AWS4-HMAC-SHA256\
        &X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2Faws4_request&X-Amz-Date=20130524T000000Z\
        &X-Amz-Expires=86400&X-Amz-SignedHeaders=host\
        &X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404";

    #[test]
    fn the_signature_is_that_of_the_documentation() {
        assert_eq!(sign_again("GET", URL, &[], SECRET).as_deref(), Some(URL));
        assert_ne!(sign_again("PUT", URL, &[], SECRET).as_deref(), Some(URL));
        assert_eq!(sign_again("GET", "https://host/path?nothing=here", &[], SECRET), None);
    }

    #[test]
    fn a_length_is_part_of_what_is_signed() {
        let signed = |length: u64| sign_again("GET", URL, &[("content-length", length.to_string())], SECRET).unwrap();
        let url = signed(7);
        assert!(url.contains("X-Amz-SignedHeaders=content-length%3Bhost&X-Amz-Signature="), "{url}");
        assert!(url != signed(8) && !url.contains(SECRET));
        assert_eq!(url.matches("X-Amz-Signature").count(), 1);
    }
}
