//! An S3 service as a process of its own, so that it can be killed: s3s-fs over a directory.

use anyhow::Context as _;
use hyper_util::rt::{TokioExecutor, TokioIo};
use railyard_service::task;
use railyard_tests::process::Process;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The one bucket.
const BUCKET: &str = "builds";
const KEY_ID: &str = "AKFAULTS";
const SECRET: &str = "secret-of-the-store";

/// Serves `root` at `listen` until the process is killed.
///
/// # Errors
/// If it cannot listen there.
pub fn serve(root: &Path, listen: SocketAddr) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let tcp = tokio::net::TcpListener::bind(listen).await.with_context(|| format!("cannot listen at {listen}"))?;
        let files = s3s_fs::FileSystem::new(root).map_err(|error| anyhow::anyhow!("{error:?}"))?;
        let mut builder = s3s::service::S3ServiceBuilder::new(files);
        builder.set_auth(s3s::auth::SimpleAuth::from_single(KEY_ID, SECRET));
        let service = builder.build();
        loop {
            let (stream, _) = tcp.accept().await?;
            let service = service.clone();
            task::spawn("connection", async move {
                let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                // A connection that breaks is the client's to notice.
                let _ = server.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    })
}

/// The service's directory and address, which outlive its process.
pub struct Store {
    root: PathBuf,
    credentials: PathBuf,
    log: PathBuf,
    program: PathBuf,
    listen: SocketAddr,
}

impl Store {
    /// Prepares a service below `dir` that `program`, this crate's binary, will run.
    ///
    /// # Errors
    /// If the disk does not let us.
    pub fn new(dir: &Path, program: &Path) -> anyhow::Result<Self> {
        let store = Self {
            root: dir.join("s3"),
            credentials: dir.join("s3-credentials"),
            log: dir.join("s3.log"),
            program: program.to_owned(),
            listen: SocketAddr::from(([127, 0, 0, 1], railyard_tests::farm::free_port())),
        };
        std::fs::create_dir_all(store.bucket())?;
        let text = format!("[default]\naws_access_key_id = {KEY_ID}\naws_secret_access_key = {SECRET}\n");
        std::fs::write(&store.credentials, text)?;
        Ok(store)
    }

    /// Starts the process.
    pub fn spawn(&self) -> Process {
        let mut command = Command::new(&self.program);
        command.arg("serve-s3").arg(&self.root).arg(self.listen.to_string());
        Process::start(command, &self.log)
    }

    /// Lines for the controller's configuration.
    pub fn config(&self) -> String {
        format!(
            "[cache]\nkind = \"s3\"\nbucket = \"{BUCKET}\"\nendpoint = \"http://{}\"\nallow_http = true\npath_style = true\n\
             credentials_file = \"{}\"\n",
            self.listen,
            self.credentials.display()
        )
    }

    /// Where the bucket's objects lie.
    pub fn bucket(&self) -> PathBuf {
        self.root.join(BUCKET)
    }

    /// What the service writes to.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Uploads that were begun and neither completed nor aborted.
    pub fn open_uploads(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(&self.root).into_iter().flatten().flatten();
        let is_of_upload = |path: &PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            name.starts_with(".upload") || name.contains(".upload-")
        };
        entries.map(|entry| entry.path()).filter(is_of_upload).collect()
    }

    /// Plays the lifecycle rule that the bucket of a farm must have: aborts uploads that nobody completed. Returns how many
    /// there were. Nobody may be uploading.
    ///
    /// # Errors
    /// If the disk does not let us.
    pub fn abort_open_uploads(&self) -> anyhow::Result<usize> {
        let open = self.open_uploads();
        for path in &open {
            std::fs::remove_file(path).with_context(|| path.display().to_string())?;
        }
        Ok(open.iter().filter(|path| path.extension().is_some_and(|ending| ending == "json")).count())
    }
}
