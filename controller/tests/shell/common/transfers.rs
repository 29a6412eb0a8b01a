//! Bytes on their way to the cache, as a worker sends them.

use super::Worker;
use railyard_common::blob::{Blob, PartChecksum, PartToSign};
use railyard_common::digest::Digest;
use railyard_proto::v1;
use railyard_service::convert::{FromProto as _, ToProto as _};
use railyard_transfer::{Form, PartLog, PartUrls, Settings, Ticket, Transfer, silent};
use tonic::Status;

/// A blob that is in the cache, or will be with its report.
pub struct Sent {
    pub blob: v1::Blob,
    /// `None`: the cache had it already.
    pub upload: Option<v1::FinishedUpload>,
}

/// The blob of plain bytes.
pub fn blob_of(bytes: &[u8]) -> Blob {
    Blob::plain(Digest::of(bytes), bytes.len() as u64)
}

/// An artifact that a report names.
pub fn artifact(path: &str, blob: &v1::Blob) -> v1::Artifact {
    v1::Artifact {
        path: path.to_owned(),
        blob: Some(blob.clone()),
        media_type: "application/octet-stream".to_owned(),
        published: String::new(),
    }
}

impl Worker {
    pub async fn prepare_upload(&self, lease: v1::LeaseId, blobs: &[Blob]) -> Result<Vec<v1::UploadTicket>, Status> {
        let blobs = blobs.iter().map(|blob| blob.to_proto()).collect();
        let request = v1::PrepareUploadRequest { lease: Some(lease), blobs, ..Default::default() };
        Ok(self.rpc.clone().prepare_upload(request).await?.into_inner().tickets)
    }

    /// Uploads what the cache lacks.
    pub async fn upload(&self, lease: v1::LeaseId, bytes: &[u8]) -> Sent {
        self.upload_as(lease, bytes, bytes).await
    }

    /// Promises some bytes, and sends others of the same length.
    pub async fn upload_as(&self, lease: v1::LeaseId, promised: &[u8], sent: &[u8]) -> Sent {
        self.upload_stored(lease, blob_of(promised), sent).await
    }

    /// Uploads the stored bytes of a blob, if the cache lacks it.
    pub async fn upload_stored(&self, lease: v1::LeaseId, blob: Blob, sent: &[u8]) -> Sent {
        let ticket = self.prepare_upload(lease, &[blob]).await.unwrap().remove(0);
        if ticket.present {
            return Sent { blob: ticket.blob.unwrap(), upload: None };
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), sent).unwrap();
        let granted = Blob::from_proto(ticket.blob.unwrap()).unwrap();
        let checksum = PartChecksum::from_proto(ticket.checksum).unwrap();
        let ticket = Ticket { upload_id: ticket.upload_id, part_bytes: ticket.part_bytes, checksum };
        let transfer = Transfer::new(self.http.clone(), Settings::default());
        let urls = Urls { worker: self, lease, blob: &granted, upload_id: &ticket.upload_id };
        let finished = transfer.push(file.path(), &granted, &ticket, &urls, &PartLog::unkept(), &silent).await.unwrap();
        let upload = v1::FinishedUpload {
            blob: Some(finished.blob.to_proto()),
            upload_id: finished.upload_id,
            etags: finished.etags,
        };
        Sent { blob: granted.to_proto(), upload: Some(upload) }
    }

    /// The bytes of a blob of the order, by the signed URL.
    pub async fn download(&self, lease: v1::LeaseId, blob: &v1::Blob) -> Vec<u8> {
        let request = v1::PrepareDownloadRequest { lease: Some(lease), blobs: vec![blob.clone()] };
        let url = self.rpc.clone().prepare_download(request).await.unwrap().into_inner().urls.remove(0);
        let dir = tempfile::tempdir().unwrap();
        let dest = dir.path().join("blob");
        let blob = Blob::from_proto(blob.clone()).unwrap();
        let transfer = Transfer::new(self.http.clone(), Settings::default());
        transfer.pull(&url, &blob, &dest, Form::Plain, &silent).await.unwrap();
        std::fs::read(dest).unwrap()
    }
}

/// Asked of the controller.
struct Urls<'a> {
    worker: &'a Worker,
    lease: v1::LeaseId,
    blob: &'a Blob,
    upload_id: &'a str,
}

impl PartUrls for Urls<'_> {
    type Error = Status;

    async fn sign(&self, parts: Vec<PartToSign>) -> Result<Vec<String>, Status> {
        let (lease, blob) = (Some(self.lease), Some(self.blob.to_proto()));
        let request = v1::SignPartsRequest {
            lease,
            blob,
            upload_id: self.upload_id.to_owned(),
            parts: parts.iter().map(PartToSign::to_proto).collect(),
        };
        Ok(self.worker.rpc.clone().sign_parts(request).await?.into_inner().urls)
    }
}
