//! An S3 service in this process, on a thread of its own: s3s-fs over a directory with one bucket.

use hyper::body::Incoming;
use hyper::header::{CONTENT_LENGTH, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Uri};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tempfile::TempDir;

const BUCKET: &str = "builds";
const KEY_ID: &str = "AKTEST";
/// The keys as variables.
pub const KEYS: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", KEY_ID), ("AWS_SECRET_ACCESS_KEY", SECRET)];
/// What no file of a farm may hold.
pub const SECRET: &str = "canary-of-the-store";

/// A service that runs for as long as the test does.
pub struct Store {
    dir: TempDir,
    address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
}

/// What the service has done.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// The parts that it has stored, each with its upload, in the order of their ends.
    pub parts: Vec<(String, u32)>,
    /// The lengths of what it has given to people and workers, objects or ranges of them. Not all of it may have arrived.
    pub read_bytes: Vec<u64>,
}

impl Store {
    /// Starts it.
    ///
    /// # Panics
    /// If this machine does not let us.
    pub fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory can be made");
        std::fs::create_dir_all(dir.path().join("root").join(BUCKET)).expect("a directory can be made");
        let text = format!("[default]\naws_access_key_id = {KEY_ID}\naws_secret_access_key = {SECRET}\n");
        std::fs::write(dir.path().join("credentials"), text).expect("a file can be written");
        let seen = Arc::default();
        let address = serve(dir.path().join("root"), Arc::clone(&seen));
        Self { dir, address, seen }
    }

    /// What it has done until now.
    pub fn seen(&self) -> Seen {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The objects, as files.
    pub fn bucket(&self) -> PathBuf {
        self.dir.path().join("root").join(BUCKET)
    }

    /// Lines for the controller's configuration, with the keys in a file.
    pub fn config(&self) -> String {
        format!("{}credentials_file = \"{}\"\n", self.place(), self.dir.path().join("credentials").display())
    }

    /// The same without the keys. They are in the variables of the environment that the tools of the field know.
    pub fn place(&self) -> String {
        format!(
            "[cache]\nkind = \"s3\"\nbucket = \"{BUCKET}\"\nendpoint = \"http://{}\"\nallow_http = true\npath_style = true\n",
            self.address
        )
    }
}

fn serve(root: PathBuf, seen: Arc<Mutex<Seen>>) -> SocketAddr {
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    tcp.set_nonblocking(true).expect("a socket can be set so");
    let address = tcp.local_addr().expect("a bound socket has an address");
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts");
        tokio::task::LocalSet::new().block_on(&runtime, accept(&root, tcp, seen));
    });
    address
}

async fn accept(root: &Path, tcp: std::net::TcpListener, seen: Arc<Mutex<Seen>>) {
    let tcp = tokio::net::TcpListener::from_std(tcp).expect("a socket can be taken over");
    let mut builder =
        s3s::service::S3ServiceBuilder::new(s3s_fs::FileSystem::new(root).expect("the directory is there"));
    builder.set_auth(s3s::auth::SimpleAuth::from_single(KEY_ID, SECRET));
    let service = builder.build();
    loop {
        let (stream, _) = tcp.accept().await.expect("connections come");
        let (service, seen) = (service.clone(), Arc::clone(&seen));
        let service = service_fn(move |request: hyper::Request<Incoming>| {
            let (method, uri) = (request.method().clone(), request.uri().clone());
            let (service, seen) = (service.clone(), Arc::clone(&seen));
            async move {
                let answer = service.call(request.map(s3s::Body::from)).await?;
                if answer.status().is_success() {
                    let length = answer.headers().get(CONTENT_LENGTH);
                    seen.lock().unwrap_or_else(PoisonError::into_inner).note(&method, &uri, length);
                }
                Ok::<_, s3s::HttpError>(answer)
            }
        });
        tokio::task::spawn_local(async move {
            let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            // A connection that breaks is the client's to notice.
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

impl Seen {
    /// A request that went well.
    fn note(&mut self, method: &Method, uri: &Uri, length: Option<&HeaderValue>) {
        let query = uri.query().unwrap_or_default();
        let parameter = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        // <https://docs.aws.amazon.com/AmazonS3/latest/API/API_UploadPart.html>
        if let (&Method::PUT, Some(upload), Some(part)) = (method, parameter("uploadId"), parameter("partNumber")) {
            self.parts.push((upload.to_owned(), part.parse().expect("a part has a number")));
        }
        // The controller signs its own requests by their headers, and for others in the query.
        if method == Method::GET && parameter("X-Amz-Signature").is_some() {
            let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
            self.read_bytes.push(length.expect("an object has a length"));
        }
    }
}
