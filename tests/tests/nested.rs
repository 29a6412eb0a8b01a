//! A worker in a container that uses the host's engine: bind mounts are resolved on the host, so a setting maps its directory.

use railyard_tests::engine::Engine;
use railyard_tests::farm::Farm;
use railyard_tests::process::railyard;
use railyard_tests::{image, unique, wait};
use std::process::Command;

/// The libraries that a program loads, loader included.
fn libraries(program: &std::path::Path) -> Vec<String> {
    let output = Command::new("ldd").arg(program).output().expect("ldd is there");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split_whitespace().filter(|word| word.starts_with('/')).map(str::to_owned).collect()
}

/// Removes a container whatever happens.
struct Container<'a>(&'a Engine, String);

impl Drop for Container<'_> {
    fn drop(&mut self) {
        self.0.docker(&["rm", "--force", "--volumes", &self.1]);
    }
}

#[test]
fn a_worker_in_a_container_runs_steps_on_the_host_s_engine() {
    let engine = Engine::shared();
    let base = format!("railyard-test-{}:1", unique());
    image::busybox(&engine, &base);
    let farm = Farm::start();
    // Makes certificate and configuration; the process on the host is not the one that is meant here.
    let configured = farm.worker("nested", &engine, "host_data_dir = \"HOST\"\nnetwork = { unguarded = \"allow\" }\n");
    let (name, host_data) = (configured.name.clone(), configured.data.clone());
    drop(configured);
    let config = farm.dir.path().join(format!("{name}.toml"));
    let text = std::fs::read_to_string(&config).unwrap();
    let inside = format!("data_dir = \"{}\"", host_data.display());
    let text = text.replacen(&inside, "data_dir = \"/data\"", 1).replace("HOST", &host_data.display().to_string());
    std::fs::write(&config, text).unwrap();

    let container = Container(&engine, format!("railyard-nested-{}", unique()));
    let mut args: Vec<String> =
        ["run", "--detach", "--network", "host", "--name", &container.1].map(str::to_owned).to_vec();
    let mut mount = |host: &str, inside: &str| args.extend(["--volume".to_owned(), format!("{host}:{inside}")]);
    mount("/var/run/docker.sock", "/var/run/docker.sock");
    mount(&host_data.display().to_string(), "/data");
    mount(&farm.dir.path().display().to_string(), &farm.dir.path().display().to_string());
    mount(&railyard().display().to_string(), "/bin/railyard");
    for library in libraries(railyard()) {
        mount(&library, &library);
    }
    args.extend([
        base.clone(),
        "/bin/railyard".to_owned(),
        "worker".to_owned(),
        "--config".to_owned(),
        config.display().to_string(),
    ]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    engine.query(&args);
    wait::until("the nested worker's hello", railyard_tests::farm::BUILD_LIMIT, || {
        let workers = farm.cli(&["workers"]).stdout;
        let logs = engine.docker(&["logs", &container.1]);
        if workers.contains(&name) && farm.json(&["workers", "-o", "json"])[0]["connected"] == true {
            Ok(())
        } else {
            Err(format!("{workers}; {}", String::from_utf8_lossy(&logs.stderr)))
        }
    });

    let text = format!(
        "name: nested\nsteps:\n  - name: make\n    image: {base}\n    script: echo made > made.txt\n    outputs: [made.txt]\n    \
         resources: {{ cpu: 0.5, memory: 64MiB, disk: 64MiB }}\n  - name: use\n    image: {base}\n    inputs: [{{ step: make }}]\n    \
         script: grep made /inputs/make/made.txt\n    resources: {{ cpu: 0.5, memory: 64MiB, disk: 64MiB }}\n"
    );
    let build = farm.submit(&farm.pipeline("nested", &text), &[]);
    let ended = farm.ended(&build);
    assert_eq!(ended["state"], "succeeded", "{ended}");
    drop(container);
    engine.query(&["image", "rm", &base]);
}
