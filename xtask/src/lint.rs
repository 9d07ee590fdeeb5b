//! Searches the sources for what no compiler lint finds: unfinished code, and `unsafe` outside the files fenced for it.

use crate::shell;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};

/// Macros of unfinished code.
const UNFINISHED: [&str; 2] = ["todo!", "unimplemented!"];

/// The files that may hold `unsafe`, each for the reason that stands beside it.
const FENCED: &[(&str, &str)] = &[
    (
        "attn-kernels-cpu/src/gemm.rs",
        "matrixmultiply takes pointers",
    ),
    ("attn-kernels-cpu/src/shared.rs", "threads share one output"),
    (
        "attn-kernels-cpu/src/prefetch.rs",
        "the intrinsic takes a pointer",
    ),
    ("attn-kernels-cpu/src/heads.rs", "calls into shared.rs"),
    ("attn-kernels-cpu/src/flash.rs", "calls into shared.rs"),
    ("attn-kernels-cpu/src/backward.rs", "calls into shared.rs"),
    (
        "attn-kernels-cpu/src/backward/bias.rs",
        "calls into shared.rs",
    ),
    (
        "attn-kernels-cpu/src/backward/relative.rs",
        "calls into shared.rs",
    ),
    ("attn-kernels-cpu/src/weights.rs", "calls into shared.rs"),
    (
        "attn-layers/src/io/file.rs",
        "a mapped file must not change",
    ),
    ("attn-layers/tests/io.rs", "an allocator that counts"),
    (
        "attn-layers/tests/typed_gradients.rs",
        "an allocator that counts",
    ),
    ("attn-macros/tests/ui/fail_dispatch.rs", "must not compile"),
    ("attn-kernels-cpu/src/dense.rs", "calls into shared.rs"),
    (
        "attn-kernels-cuda/src/ops/matrix.rs",
        "vouches for addresses",
    ),
    (
        "attn-kernels-cuda/src/ops/dense.rs",
        "hands matrices to a library",
    ),
    ("attn-kernels-cuda/src/nvidia/library.rs", "a library of C"),
    ("attn-kernels-cuda/src/nvidia.rs", "a library of C"),
    ("attn-kernels-cuda/src/nvrtc.rs", "a library of C"),
    (
        "attn-kernels-cuda/src/driver.rs",
        "a kernel accesses what it is told",
    ),
    ("attn-kernels-cuda/src/launch.rs", "starts kernels"),
    ("attn-kernels-cuda/src/params.rs", "vouches for addresses"),
    ("attn-kernels-cuda/src/device.rs", "memory of the caller's"),
    (
        "attn-kernels-cuda/tests/errors.rs",
        "memory that is never used",
    ),
    (
        "attn-kernels-cuda/emulator/src/emulator.rs",
        "implements a trait with an unsafe method",
    ),
    (
        "attn-kernels-cuda/emulator/tests/support/mod.rs",
        "launches",
    ),
    ("attn-kernels-cuda/emulator/tests/faults.rs", "launches"),
    ("attn-kernels-cuda/emulator/tests/hopper.rs", "launches"),
    ("no-std-check/src/memory.rs", "memory functions of C"),
    ("no-std-check/src/system.rs", "entry without start files"),
];

/// Folders without sources of ours.
const SKIPPED_FOLDERS: [&str; 5] = [
    "target",
    "corpus",
    "artifacts",
    "node_modules",
    "__pycache__",
];

pub(crate) fn command(args: lexopt::Parser) -> Result<()> {
    crate::no_more(args)?;
    check()
}

/// Fails with every finding.
pub(crate) fn check() -> Result<()> {
    let root = shell::root();
    let mut findings = Vec::new();
    let mut files = 0;
    for path in files_under(&root)? {
        if path.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        files += 1;
        let source = std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let name = path
            .strip_prefix(&root)?
            .to_string_lossy()
            .replace('\\', "/");
        findings.extend(find(&name, &source));
    }
    if !findings.is_empty() {
        bail!("{}", findings.join("\n       "));
    }
    println!("{files} source files: nothing unfinished, no unsafe code outside its fence");
    Ok(())
}

/// Every file below `folder`, in the order of its path. Hidden folders and build outputs are left out.
pub(crate) fn files_under(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let entries = std::fs::read_dir(&folder)
            .with_context(|| format!("cannot list {}", folder.display()))?;
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if entry.file_type()?.is_dir() {
                if !name.starts_with('.') && !SKIPPED_FOLDERS.contains(&name.as_str()) {
                    folders.push(entry.path());
                }
            } else {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    Ok(files)
}

fn find(name: &str, source: &str) -> Vec<String> {
    let fenced = FENCED.iter().any(|(file, _)| *file == name);
    let code = code_only(source);
    let mut findings = Vec::new();
    for (number, line) in code.lines().enumerate() {
        let place = format!("{name}:{}", number + 1);
        for unfinished in UNFINISHED {
            if has_word(line, unfinished) {
                findings.push(format!("{place}: `{unfinished}` is left"));
            }
        }
        if !fenced && has_word(line, "unsafe") {
            findings.push(format!(
                "{place}: `unsafe` outside the fenced files of xtask/src/lint.rs"
            ));
        }
    }
    findings
}

fn has_word(line: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(start, _)| {
        let before = line[..start].chars().next_back();
        let after = line[start + word.len()..].chars().next();
        !before.is_some_and(is_part) && (word.ends_with('!') || !after.is_some_and(is_part))
    })
}

/// The source with comments and the contents of strings blanked, line breaks kept.
fn code_only(source: &str) -> String {
    let mut code = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        let length = blank_length(rest, code.chars().next_back());
        if length == 0 {
            code.push(first);
            rest = &rest[first.len_utf8()..];
        } else {
            let (blank, after) = rest.split_at(length);
            code.extend(blank.chars().filter(|&c| c == '\n'));
            code.push(' ');
            rest = after;
        }
    }
    code
}

/// Bytes of the comment, string or character literal that `rest` starts with; 0 if it starts with code.
fn blank_length(rest: &str, before: Option<char>) -> usize {
    let in_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    if rest.starts_with("//") {
        rest.find('\n').unwrap_or(rest.len())
    } else if rest.starts_with("/*") {
        block_comment(rest)
    } else if rest.starts_with('"') {
        quoted(rest, '"')
    } else if rest.starts_with('r') && !in_word {
        raw_string(rest)
    } else if rest.starts_with('\'') {
        character(rest)
    } else {
        0
    }
}

fn block_comment(rest: &str) -> usize {
    let bytes = rest.as_bytes();
    let (mut depth, mut at) = (0usize, 0);
    while at + 1 < bytes.len() {
        match &bytes[at..at + 2] {
            b"/*" => depth += 1,
            b"*/" if depth == 1 => return at + 2,
            b"*/" => depth -= 1,
            _ => {
                at += 1;
                continue;
            }
        }
        at += 2;
    }
    rest.len()
}

fn quoted(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// `r"…"` or `r#"…"#`; 0 for a name that begins with r.
fn raw_string(rest: &str) -> usize {
    let hashes = rest[1..].bytes().take_while(|&byte| byte == b'#').count();
    let open = 1 + hashes;
    if !rest[open..].starts_with('"') {
        return 0;
    }
    let close = format!("\"{}", "#".repeat(hashes));
    rest[open + 1..]
        .find(&close)
        .map_or(rest.len(), |at| open + 1 + at + close.len())
}

/// `'x'` or `'\n'`; 0 for a lifetime.
fn character(rest: &str) -> usize {
    let mut chars = rest.char_indices().skip(1);
    match (chars.next(), chars.next()) {
        (Some((_, '\\')), _) => quoted(rest, '\''),
        (Some(_), Some((at, '\''))) => at + 1,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unfinished_code_is_found_with_its_line() {
        assert_eq!(
            find("a.rs", "fn f() {\n    todo!()\n}"),
            ["a.rs:2: `todo!` is left"]
        );
        assert_eq!(find("a.rs", "unimplemented!(\"x\")").len(), 1);
        assert!(find("a.rs", "mytodo!() // todo!()").is_empty());
    }

    #[test]
    fn unsafe_code_is_found_outside_its_fence() {
        let source = "#[expect(unsafe_code, reason = \"unsafe\")]\nfn f() { unsafe { g() } }";
        let findings = find("attn-layers/src/layer.rs", source);
        assert_eq!(findings.len(), 1);
        assert!(findings[0].starts_with("attn-layers/src/layer.rs:2: "));
        assert!(find("attn-kernels-cpu/src/gemm.rs", source).is_empty());
    }

    #[test]
    fn comments_and_literals_are_not_code() {
        let source = r####"
            // unsafe
            /* unsafe /* unsafe */ unsafe */
            let a = "unsafe \" unsafe";
            let b = r#"unsafe " unsafe"#;
            let c = '"'; let d = '\''; fn e<'unsafe_>(x: &'static str) {}
            let f = b"unsafe";
        "####;
        assert!(find("a.rs", source).is_empty(), "{}", code_only(source));
        assert_eq!(find("a.rs", &format!("{source}\nunsafe {{}}")).len(), 1);
        assert_eq!(code_only(source).lines().count(), source.lines().count());
    }

    #[test]
    fn every_fenced_file_exists() {
        for (file, _) in FENCED {
            assert!(
                shell::root().join(file).is_file(),
                "{file} is fenced but not there"
            );
        }
    }
}
