//! The pipelines that the tests run.

/// One step without outputs.
pub const ONE: &str = "
name: one
platforms: [linux/amd64]
steps:
  - name: work
    image: debian:bookworm
    script: work
";

/// One step whose lease expires as soon as the format allows.
pub const SHORT_LEASE: &str = "
name: short
platforms: [linux/amd64]
steps:
  - name: work
    image: debian:bookworm
    script: work
    lease_ttl: 10s
";

/// One step that publishes a file.
pub const PUBLISH: &str = "
name: pub
platforms: [linux/amd64]
params:
  place: { default: 'images/{{ version }}' }
steps:
  - name: make
    image: debian:bookworm
    script: make
    outputs:
      - path: out/*
        publish: '{{ place }}'
";

/// An image and artifacts that travel: `base` commits its image and leaves files, `disk` uses both, `test` uses the disk.
pub const CHAIN: &str = "
name: chain
platforms: [linux/amd64]
params:
  flavour: { default: plain }
steps:
  - name: base
    image: 'debian:{{ flavour }}'
    script: make base
    commit: true
    outputs:
      - path: pkg/*.deb
      - path: packages.txt
        publish: 'images/{{ arch }}/{{ version }}'
  - name: disk
    image: { step: base }
    script: make disk
    inputs:
      - step: base
        artifacts: [packages.txt]
    outputs:
      - path: out/disk.raw
        publish: 'images/{{ arch }}/{{ version }}'
  - name: test
    image: debian:bookworm
    script: boot
    inputs:
      - step: disk
        path: /image
";
