//! An S3 service in this process: s3s-fs over a directory, with a rule for what goes wrong.

use railyard_controller::cache::S3Config;
use railyard_service::task;
use s3s::service::S3Service;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

/// The one bucket.
const BUCKET: &str = "farm";
/// What the farm must never show to anybody.
pub const SECRET: &str = "secret-of-the-store";

/// More than any answer that is thrown away here has.
const ANSWER_MAX_BYTES: usize = 1024 * 1024;

/// What goes wrong with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Refused with this status; nothing is done.
    Refuse(u16),
    /// Done, and answered with this status all the same.
    Deny(u16),
    /// Neither done nor answered, for as long as the client waits.
    Hold,
}

/// What goes wrong with the request of this head. It is asked for every one, in their order.
pub type Rule = Box<dyn FnMut(&http::request::Parts) -> Option<Trouble> + Send>;

/// A running service. It ends with this value.
pub struct Store {
    pub config: S3Config,
    /// The bucket's objects, as files.
    pub bucket: PathBuf,
    pub rules: Rules,
    _stop: DropGuard,
}

/// What goes wrong.
#[derive(Clone)]
pub struct Rules(Arc<Mutex<Rule>>);

impl Rules {
    /// From now on this.
    pub fn set(&self, rule: impl FnMut(&http::request::Parts) -> Option<Trouble> + Send + 'static) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Box::new(rule);
    }

    /// From now on nothing.
    pub fn heal(&self) {
        self.set(|_| None);
    }

    fn ask(&self, request: &http::request::Parts) -> Option<Trouble> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)(request)
    }
}

impl Store {
    /// Serves `root`, where no bucket is yet.
    pub async fn start(root: &Path) -> Self {
        let bucket = root.join(BUCKET);
        std::fs::create_dir_all(&bucket).unwrap();
        let mut service = s3s::service::S3ServiceBuilder::new(s3s_fs::FileSystem::new(root).unwrap());
        service.set_auth(s3s::auth::SimpleAuth::from_single("AKTEST", SECRET));
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", tcp.local_addr().unwrap());
        let rules = Rules(Arc::new(Mutex::new(Box::new(|_| None))));
        let (serving, shutdown) = (serve(tcp, service.build(), rules.clone()), CancellationToken::new());
        let stop = shutdown.clone();
        task::spawn("s3s", async move { stop.run_until_cancelled(serving).await });

        let keys = root.with_file_name("credentials");
        let text = format!("[default]\naws_access_key_id = AKTEST\naws_secret_access_key = {SECRET}\n");
        std::fs::write(&keys, text).unwrap();
        let config = S3Config {
            endpoint: Some(endpoint),
            credentials_file: Some(keys),
            allow_http: true,
            path_style: true,
            ..S3Config::new(BUCKET)
        };
        Self { config, bucket, rules, _stop: shutdown.drop_guard() }
    }
}

async fn serve(tcp: TcpListener, service: S3Service, rules: Rules) {
    loop {
        let (stream, _) = tcp.accept().await.unwrap();
        let (service, rules) = (service.clone(), rules.clone());
        let answer = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
            let (head, body) = request.into_parts();
            let trouble = rules.ask(&head);
            let (service, request) = (service.clone(), http::Request::from_parts(head, body));
            async move { answer(&service, request, trouble).await }
        });
        task::spawn("s3s connection", async move {
            let builder = hyper_util::server::conn::auto::Builder::new(hyper_util::rt::TokioExecutor::new());
            // A client that goes away ends its connection, nothing else.
            let _ = builder.serve_connection(hyper_util::rt::TokioIo::new(stream), answer).await;
        });
    }
}

async fn answer(
    service: &S3Service,
    request: http::Request<hyper::body::Incoming>,
    trouble: Option<Trouble>,
) -> Result<http::Response<s3s::Body>, s3s::HttpError> {
    let status = match trouble {
        Some(Trouble::Hold) => std::future::pending().await,
        Some(Trouble::Refuse(status)) => status,
        Some(Trouble::Deny(status)) => {
            let mut done = hyper::service::Service::call(service, request).await?;
            // Some of what is asked is done while the answer is being read.
            done.body_mut().store_all_limited(ANSWER_MAX_BYTES).await.unwrap();
            status
        }
        None => return hyper::service::Service::call(service, request).await,
    };
    Ok(http::Response::builder().status(status).body(s3s::Body::empty()).unwrap())
}
