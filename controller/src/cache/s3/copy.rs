//! Server-side copies of any size.
//!
//! The one-request copy of S3 ends at 5 GiB, keeps the type of the source and knows no "only if new" everywhere. A
//! multipart upload whose parts are ranges of the source has none of these limits. The store's client has no call for
//! it, so the requests are presigned with it and sent here.

use super::{S3, attributes, key};
use crate::cache::CacheError;
use crate::cache::parts::spans;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use http::{HeaderName, HeaderValue, Method, header};
use object_store::multipart::MultipartStore as _;
use object_store::path::Path as Key;
use object_store::signer::{SignedUrlOptions, Signer as _};
use object_store::{ObjectStore as _, PutMode, PutMultipartOptions, PutOptions, PutPayload};
use railyard_common::digest::Digest;
use railyard_common::path::RelPath;
use std::fmt::Write as _;
use std::time::Duration;

/// A range that the service copies in one request; it takes seconds.
const COPY_PART_BYTES: u64 = 1024 * 1024 * 1024;
/// Ranges at a time.
const PARALLEL_PARTS: usize = 4;
/// Every request is sent at once.
const SIGNATURE_TTL: Duration = Duration::from_secs(300);

/// How a copy ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Copied {
    Done,
    /// Somebody else wrote the destination first.
    Exists,
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
        let copying = (1u32..).zip(spans(size, COPY_PART_BYTES)).map(|(number, (offset, length))| {
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
        let (status, body) = self.send(Method::PUT, to, options, &headers, String::new()).await?;
        let etag = body.split_once("<ETag>").and_then(|(_, rest)| rest.split_once("</ETag>"));
        match etag {
            Some((etag, _)) if status.is_success() => Ok(etag.replace("&quot;", "\"").replace("&#34;", "\"")),
            _ => Err(refused("copy a part of", to, status, &body)),
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
        let (status, body) = self.send(Method::POST, to, options, &headers, xml).await?;
        match status.as_u16() {
            // 409 is a write at the very same time.
            409 | 412 => Ok(Copied::Exists),
            // The service may find out late, when the status is sent already.
            200 if !body.contains("<Error>") => Ok(Copied::Done),
            _ => Err(refused("complete the copy to", to, status, &body)),
        }
    }

    /// Sends one presigned request whose `headers` are part of the signature.
    async fn send(
        &self,
        method: Method,
        to: &Key,
        mut options: SignedUrlOptions,
        headers: &[(&'static str, String)],
        body: String,
    ) -> Result<(http::StatusCode, String), CacheError> {
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
        let url = self.store.signed_url_opts(method.clone(), to, SIGNATURE_TTL, &options).await;
        let url = url.map_err(|error| failed(error.into()))?;
        let request = self.http.request(method, url.as_str()).headers(request_headers).body(body);
        let answer = request.send().await.map_err(|error| failed(error.without_url().into()))?;
        let status = answer.status();
        let body = answer.text().await.map_err(|error| failed(error.without_url().into()))?;
        Ok((status, body))
    }
}

fn refused(what: &str, to: &Key, status: http::StatusCode, body: &str) -> CacheError {
    let source = format!("the service answered {status}: {}", body.trim());
    CacheError::Store { what: format!("{what} {to}"), source: source.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::parts::OBJECT_MAX_BYTES;

    #[test]
    fn ranges_cover_an_object_of_any_size_within_what_s3_allows() {
        const GIB: u64 = 1 << 30;
        for size in
            [1, COPY_PART_BYTES - 1, COPY_PART_BYTES, COPY_PART_BYTES + 1, 5 * GIB + 1, 1 << 40, OBJECT_MAX_BYTES]
        {
            let ranges: Vec<_> = spans(size, COPY_PART_BYTES).collect();
            assert!(ranges.len() <= 10_000 && COPY_PART_BYTES <= 5 * GIB, "{size}");
            let mut end = 0;
            for (offset, length) in &ranges {
                assert_eq!(*offset, end);
                assert!(*length > 0);
                end += length;
            }
            assert_eq!(end, size);
            // S3 wants 5 MiB of every part but the last.
            assert!(ranges.iter().rev().skip(1).all(|(_, length)| *length == COPY_PART_BYTES));
        }
    }
}
