//! Server-side copies of any size.
//!
//! The one-request copy of S3 ends at 5 GiB, keeps the type of the source and knows no "only if new" everywhere. A
//! multipart upload whose parts are ranges of the source has none of these limits. The store's client has no call for
//! it, so the requests are presigned with it and sent here. A request that fails is sent again: a copy of a hundred ranges
//! does not begin anew because the service was busy once.

use super::{S3, attributes, key};
use crate::cache::CacheError;
use crate::cache::parts::{copy_part_bytes, spans};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use http::{HeaderName, HeaderValue, Method, StatusCode, header};
use object_store::multipart::MultipartStore as _;
use object_store::path::Path as Key;
use object_store::signer::{SignedUrlOptions, Signer as _};
use object_store::{ObjectStore as _, PutMode, PutMultipartOptions, PutOptions, PutPayload};
use railyard_common::backoff::Backoff;
use railyard_common::digest::Digest;
use railyard_common::path::RelPath;
use std::fmt::Write as _;
use std::ops::RangeInclusive;
use std::time::Duration;

/// What S3 allows for a range.
pub(super) const COPY_PART_BYTES: RangeInclusive<u64> = 5 << 20..=5 << 30;
/// Ranges at a time.
const PARALLEL_PARTS: usize = 4;
/// Every request is sent at once.
const SIGNATURE_TTL: Duration = Duration::from_secs(300);

/// How often a request is sent that the service could not carry out; and how long it gets in between.
const TRIES: u32 = 5;
const RETRY: Backoff = Backoff { base_millis: 200, max_millis: 5_000 };

/// How a copy ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Copied {
    Done,
    /// The service did not end it: something is there by now, or was written at the very same time, or this very copy was
    /// ended by a try whose answer was lost. What is there tells.
    Exists,
}

/// What the service said.
struct Answer {
    status: StatusCode,
    body: String,
    /// Whether an earlier try may have been carried out.
    is_repeated: bool,
}

impl Answer {
    /// Whether another try may do better. The service may find out late, when the status is sent already.
    fn is_busy(&self) -> bool {
        self.status.is_server_error()
            || matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT)
            || self.status.is_success() && self.body.contains("<Error>")
    }

    fn refused(&self, what: &str, to: &Key) -> CacheError {
        let source = format!("the service answered {}: {}", self.status, self.body.trim());
        CacheError::Store { what: format!("{what} {to}"), source: source.into() }
    }
}

impl S3 {
    /// Copies `size` bytes from `from` to `to`, unless `to` exists. The copy tells `digest` and the type of its name.
    pub(super) async fn copy(
        &self,
        from: &RelPath,
        to: &RelPath,
        size: u64,
        digest: &Digest,
    ) -> Result<Copied, CacheError> {
        let to_key = key(to)?;
        let attributes = attributes(to, Some(digest));
        let failed = || CacheError::store("copy to", to);
        if size == 0 {
            // There is no range of nothing.
            let options = PutOptions { mode: PutMode::Create, attributes, ..PutOptions::default() };
            return match self.store.put_opts(&to_key, PutPayload::new(), options).await {
                Ok(_) => Ok(Copied::Done),
                Err(object_store::Error::AlreadyExists { .. }) => Ok(Copied::Exists),
                Err(error) => Err(failed()(error)),
            };
        }
        let options = PutMultipartOptions { attributes, ..PutMultipartOptions::default() };
        let upload_id = self.store.create_multipart_opts(&to_key, options).await.map_err(failed())?;
        let copied = self.copy_parts(from, &to_key, &upload_id, size).await;
        if !matches!(copied, Ok(Copied::Done)) {
            // The copy's own result is the one to tell; the bucket's lifecycle rule removes what is left.
            let _ = self.store.abort_multipart(&to_key, &upload_id).await;
        }
        copied
    }

    async fn copy_parts(&self, from: &RelPath, to: &Key, upload_id: &str, size: u64) -> Result<Copied, CacheError> {
        let part_bytes = copy_part_bytes(size, self.copy_part_bytes);
        let copying = (1u32..).zip(spans(size, part_bytes)).map(|(number, (offset, length))| {
            let last = offset + length - 1;
            self.copy_part(from, to, upload_id, number, format!("bytes={offset}-{last}"))
        });
        let etags: Vec<String> = stream::iter(copying).buffered(PARALLEL_PARTS).try_collect().await?;
        self.complete_if_new(to, upload_id, &etags).await
    }

    async fn copy_part(
        &self,
        from: &RelPath,
        to: &Key,
        upload_id: &str,
        number: u32,
        range: String,
    ) -> Result<String, CacheError> {
        // Only blobs are copied: their paths have nothing that must be encoded.
        let source = format!("/{}/{from}", self.bucket);
        let number = number.to_string();
        let options = SignedUrlOptions::new().with_query([("partNumber", number.as_str()), ("uploadId", upload_id)]);
        let headers = [("x-amz-copy-source", source), ("x-amz-copy-source-range", range)];
        let answer = self.send(Method::PUT, to, options, &headers, String::new()).await?;
        let etag = answer.body.split_once("<ETag>").and_then(|(_, rest)| rest.split_once("</ETag>"));
        match etag {
            Some((etag, _)) if answer.status.is_success() => Ok(etag.replace("&quot;", "\"").replace("&#34;", "\"")),
            _ => Err(answer.refused("copy a part of", to)),
        }
    }

    /// Ends the copy, unless the destination exists by now.
    async fn complete_if_new(&self, to: &Key, upload_id: &str, etags: &[String]) -> Result<Copied, CacheError> {
        let mut xml = String::from("<CompleteMultipartUpload xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">");
        for (number, etag) in (1..).zip(etags) {
            let etag = etag.replace('"', "&quot;");
            // Writing to a string cannot fail.
            let _ = write!(xml, "<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>");
        }
        xml.push_str("</CompleteMultipartUpload>");
        let options = SignedUrlOptions::new().with_query([("uploadId", upload_id)]);
        let headers = [(header::IF_NONE_MATCH.as_str(), "*".to_owned())];
        let answer = self.send(Method::POST, to, options, &headers, xml).await?;
        match answer.status.as_u16() {
            409 | 412 => Ok(Copied::Exists),
            // The upload is no more. Some services call that "denied".
            403 | 404 if answer.is_repeated => Ok(Copied::Exists),
            200 if !answer.is_busy() => Ok(Copied::Done),
            _ => Err(answer.refused("complete the copy to", to)),
        }
    }

    /// Sends one presigned request whose `headers` are part of the signature; again while the service is busy.
    async fn send(
        &self,
        method: Method,
        to: &Key,
        mut options: SignedUrlOptions,
        headers: &[(&'static str, String)],
        body: String,
    ) -> Result<Answer, CacheError> {
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| CacheError::Store {
            what: format!("copy to {to}"),
            source,
        };
        let mut request_headers = http::HeaderMap::new();
        for (name, value) in headers {
            let value = HeaderValue::from_str(value).map_err(|error| failed(error.into()))?;
            options = options.with_signed_header(HeaderName::from_static(name), value.clone());
            request_headers.insert(*name, value);
        }
        let mut tries = 1;
        loop {
            let url = self.store.signed_url_opts(method.clone(), to, SIGNATURE_TTL, &options).await;
            let url = url.map_err(|error| failed(error.into()))?;
            let request = self.http.request(method.clone(), url.as_str());
            let sent = answer_to(request.headers(request_headers.clone()).body(body.clone())).await;
            let is_last = tries == TRIES;
            match sent {
                Ok((status, body)) => {
                    let answer = Answer { status, body, is_repeated: tries > 1 };
                    if is_last || !answer.is_busy() {
                        return Ok(answer);
                    }
                }
                // One that took so long had its chance.
                Err(error) if is_last || error.is_timeout() && !error.is_connect() => {
                    return Err(failed(error.without_url().into()));
                }
                Err(_) => {}
            }
            tokio::time::sleep(Duration::from_millis(RETRY.delay_millis(tries))).await;
            tries += 1;
        }
    }
}

async fn answer_to(request: reqwest::RequestBuilder) -> Result<(StatusCode, String), reqwest::Error> {
    let answer = request.send().await?;
    Ok((answer.status(), answer.text().await?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::S3Config;
    use crate::cache::parts::OBJECT_MAX_BYTES;

    #[test]
    fn ranges_cover_an_object_of_any_size_within_what_s3_allows() {
        const GIB: u64 = 1 << 30;
        let wanted = [S3Config::new("farm").copy_part.as_u64(), 5 << 20, 5 * GIB];
        let sizes = [1, GIB - 1, GIB, GIB + 1, 5 * GIB + 1, 1 << 40, OBJECT_MAX_BYTES];
        for (size, wanted) in sizes.into_iter().flat_map(|size| wanted.map(|wanted| (size, wanted))) {
            let part = copy_part_bytes(size, wanted);
            let ranges: Vec<_> = spans(size, part).collect();
            assert!(ranges.len() <= 10_000 && COPY_PART_BYTES.contains(&part), "{size}");
            let mut end = 0;
            for (offset, length) in &ranges {
                assert_eq!(*offset, end);
                assert!(*length > 0);
                end += length;
            }
            assert_eq!(end, size);
            assert!(ranges.iter().rev().skip(1).all(|(_, length)| *length == part));
        }
    }
}
