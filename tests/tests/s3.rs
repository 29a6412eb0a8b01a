//! A build whose cache is an S3 service: bytes go between worker and service by presigned URLs, the keys stay in the controller.

use hyper_util::rt::{TokioExecutor, TokioIo};
use railyard_tests::engine::Engine;
use railyard_tests::farm::{Farm, job};
use railyard_tests::{image, unique};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

const KEY_ID: &str = "AKTEST";
const SECRET: &str = "canary-of-the-store";

/// Serves `root` as an S3 service with one bucket, on a thread of its own, for as long as the test runs.
fn serve_s3(root: PathBuf) -> SocketAddr {
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let tcp = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            tell.send(tcp.local_addr().unwrap()).unwrap();
            let mut builder = s3s::service::S3ServiceBuilder::new(s3s_fs::FileSystem::new(&root).unwrap());
            builder.set_auth(s3s::auth::SimpleAuth::from_single(KEY_ID, SECRET));
            let service = builder.build();
            loop {
                let (stream, _) = tcp.accept().await.unwrap();
                let service = service.clone();
                tokio::task::spawn_local(async move {
                    let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    // A connection that breaks is the client's to notice.
                    let _ = server.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
    });
    told.recv().unwrap()
}

/// Whether any file below `dir` holds `text`.
fn holds(dir: &Path, text: &str) -> Option<PathBuf> {
    let files = railyard_tests::farm::files_below(dir);
    files.into_iter().find(|path| {
        let bytes = std::fs::read(path).unwrap_or_default();
        bytes.windows(text.len()).any(|window| window == text.as_bytes())
    })
}

#[test]
fn a_build_goes_through_s3() {
    let store = tempfile::tempdir().unwrap();
    std::fs::create_dir(store.path().join("builds")).unwrap();
    let address = serve_s3(store.path().to_owned());
    let credentials = tempfile::NamedTempFile::new().unwrap();
    let text = format!("[default]\naws_access_key_id = {KEY_ID}\naws_secret_access_key = {SECRET}\n");
    std::fs::write(credentials.path(), text).unwrap();
    let cache = format!(
        "[cache]\nkind = \"s3\"\nbucket = \"builds\"\nendpoint = \"http://{address}\"\nallow_http = true\npath_style = true\n\
         credentials_file = \"{}\"\n",
        credentials.path().display()
    );

    let engine = Engine::shared();
    let base = format!("railyard-test-{}:1", unique());
    image::busybox(&engine, &base);
    let farm = Farm::start_with(&cache, &[]);
    let worker = farm.worker("w", &engine, "");
    let text = format!(
        "name: stored\nsteps:\n  - name: make\n    image: {base}\n    commit: true\n    script: |\n      \
         dd if=/dev/zero of=big bs=1048576 count=40\n      echo made > /etc/made; env\n    \
         outputs: [{{ path: big, publish: \"images/{{{{ version }}}}\" }}]\n    resources: {{ cpu: 0.5, memory: 64MiB, disk: 64MiB }}\n  \
         - name: use\n    image: {{ step: make }}\n    inputs: [{{ step: make }}]\n    \
         script: |\n      test $(wc -c < /inputs/make/big) = 41943040\n      cat /etc/made\n    resources: {{ cpu: 0.5, memory: 64MiB, disk: 64MiB }}\n"
    );
    let build = farm.submit(&farm.pipeline("stored", &text), &["--version", "1.0"]);
    let ended = farm.ended(&build);
    assert_eq!(ended["state"], "succeeded", "{ended}; {}", worker.process.log());
    assert_eq!(job(&ended, "use")["attempts"][0]["attempt"], 1);

    let bucket = store.path().join("builds");
    assert_eq!(std::fs::metadata(bucket.join("images/1.0/big")).unwrap().len(), 40 << 20);
    assert!(bucket.join("images/1.0/SHA256SUMS").exists());
    assert!(bucket.join("builds/stored/1.0/build.json").exists());
    let out = farm.dir.path().join("fetched");
    let fetched = farm.cli(&["fetch", &build, "big", "-o", &out.display().to_string()]);
    assert_eq!(fetched.code, 0, "{fetched:?}");
    assert_eq!(std::fs::metadata(out.join("big")).unwrap().len(), 40 << 20);
    // The store's secret has reached no file of the farm: not the worker's, not a log, not the journal.
    assert_eq!(holds(farm.dir.path(), SECRET), None);
    engine.query(&["image", "rm", &base]);
}
