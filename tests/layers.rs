//! The architecture: a module imports only from the layers above its own.

use std::fs;
use std::path::{Path, PathBuf};

/// The layers, top to bottom, as `src/lib.rs` lists them.
const LAYERS: [&str; 13] = [
    "config", "rng", "comm", "data", "model", "target", "method", "mcmc", "train", "metric", "record",
    "plot", "cli",
];

fn source_files(path: &Path, found: &mut Vec<PathBuf>) {
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            source_files(&entry.unwrap().path(), found);
        }
    } else if path.extension().is_some_and(|extension| extension == "rs") {
        found.push(path.to_path_buf());
    }
}

/// Layers that a file imports: every `crate::<layer>` in it.
fn imports(text: &str) -> Vec<usize> {
    text.match_indices("crate::")
        .filter_map(|(at, prefix)| {
            let rest = &text[at + prefix.len()..];
            let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            LAYERS.iter().position(|layer| *layer == &rest[..end])
        })
        .collect()
}

#[test]
fn modules_import_only_from_layers_above() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut checked = 0;
    for (own, layer) in LAYERS.iter().enumerate() {
        let mut files = Vec::new();
        source_files(&source.join(layer), &mut files);
        source_files(&source.join(format!("{layer}.rs")), &mut files);
        for file in files.into_iter().filter(|file| file.exists()) {
            let text = fs::read_to_string(&file).unwrap();
            assert!(
                !text.contains("crate::{"),
                "{} groups imports, which this test cannot read",
                file.display()
            );
            for import in imports(&text) {
                assert!(
                    import <= own,
                    "{} is in layer `{layer}` and imports from `{}` below it",
                    file.display(),
                    LAYERS[import]
                );
            }
            checked += 1;
        }
    }
    assert!(checked > 40, "only {checked} files were found");
}

#[test]
fn lib_lists_the_layers_in_this_order() {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    let listed: Vec<&str> =
        text.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    assert_eq!(listed, LAYERS);
}
