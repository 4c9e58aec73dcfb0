//! GGUF files on disk: what may be opened, split models, and every real file at hand.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

use worker_orcd::gguf::{Gguf, GgufWriter, split_file_name, validate_finite, validate_rows};
use worker_orcd_core::DType;

fn refusal(path: &Path) -> String {
    Gguf::open(path).expect_err("a bad file was opened").to_string()
}

/// Writes a file with one F32 tensor of four elements per name, each filled with its own length.
fn write(path: &Path, tensors: &[&str], metadata: impl FnOnce(&mut GgufWriter)) {
    let mut writer = GgufWriter::to(path);
    metadata(&mut writer);
    for name in tensors {
        writer.tensor(name, &[4], DType::F32).unwrap();
    }
    let mut data = writer.create().unwrap();
    for name in tensors {
        data.write(name, &[name.len() as u8; 16]).unwrap();
    }
    data.finish().unwrap();
}

#[test]
fn only_regular_files_are_opened() {
    let folder = tempfile::tempdir().unwrap();
    assert!(refusal(folder.path()).ends_with("file: must be a regular file, found a directory"));
    let absent = folder.path().join("absent.gguf");
    assert!(refusal(&absent).starts_with(absent.to_str().unwrap()), "the path is named");
    let empty = folder.path().join("empty.gguf");
    fs::write(&empty, "").unwrap();
    assert!(refusal(&empty).contains("0 bytes are too few"));
    let model = folder.path().join("model.gguf");
    write(&model, &["w"], |_| {});
    fs::write(folder.path().join("cut.gguf"), &fs::read(&model).unwrap()[..70]).unwrap();
    assert!(refusal(&folder.path().join("cut.gguf")).contains("cut.gguf: tensor \"w\": data of 16 bytes"));
}

#[cfg(unix)]
#[test]
fn devices_and_pipes_are_refused_and_links_followed() {
    let folder = tempfile::tempdir().unwrap();
    if Path::new("/dev/zero").exists() {
        assert!(refusal(Path::new("/dev/zero")).contains("found a device, pipe or socket"));
    }
    let fifo = folder.path().join("fifo.gguf");
    match std::process::Command::new("mkfifo").arg(&fifo).status() {
        Ok(status) if status.success() => {
            assert!(refusal(&fifo).contains("found a device, pipe or socket"));
        }
        other => println!("SKIPPED: no FIFO could be made to try ({other:?})"),
    }
    let model = folder.path().join("model.gguf");
    write(&model, &["w"], |_| {});
    let link = folder.path().join("link.gguf");
    std::os::unix::fs::symlink(&model, &link).unwrap();
    assert_eq!(Gguf::open(&link).unwrap().tensors().len(), 1);
    let dangling = folder.path().join("dangling.gguf");
    std::os::unix::fs::symlink(folder.path().join("absent"), &dangling).unwrap();
    refusal(&dangling);
}

#[test]
fn a_file_changed_after_opening_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    write(&path, &["w"], |_| {});
    let model = Gguf::open(&path).unwrap();
    model.check_unchanged().unwrap();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(60).unwrap();
    let text = model.check_unchanged().unwrap_err().to_string();
    assert!(text.contains("changed since it was opened"), "{text}");
    // Replacing the name, as downloads do, leaves the open file whole.
    let other = folder.path().join("other.gguf");
    write(&other, &["v"], |_| {});
    let model = Gguf::open(&other).unwrap();
    let spare = folder.path().join("spare.gguf");
    write(&spare, &["x", "y"], |_| {});
    fs::rename(&spare, &other).unwrap();
    model.check_unchanged().unwrap();
    assert!(model.tensor("v").is_some());
}

const NAMES: [[&str; 2]; 3] = [["a", "bb"], ["ccc", "dddd"], ["eeeee", "ffffff"]];

/// Adds the split keys.
fn numbered(index: u16, count: u16, tensors: i32) -> impl FnOnce(&mut GgufWriter) {
    move |writer| {
        writer.split(index, count, tensors).unwrap();
    }
}

/// Writes a sound model in three parts and returns the path of the first.
fn split_model(folder: &Path) -> PathBuf {
    for (index, names) in (0..).zip(NAMES) {
        write_part(folder, u32::from(index) + 1, &names, numbered(index, 3, 6));
    }
    folder.join(split_file_name("model", 1, 3))
}

fn write_part(folder: &Path, number: u32, names: &[&str], metadata: impl FnOnce(&mut GgufWriter)) {
    write(&folder.join(split_file_name("model", number, 3)), names, |writer| {
        if number == 1 {
            writer.key("general.architecture", "llama").unwrap();
        }
        metadata(writer);
    });
}

#[test]
fn a_split_model_is_one_model() {
    let folder = tempfile::tempdir().unwrap();
    let first = split_model(folder.path());
    let model = Gguf::open(&first).unwrap();
    assert_eq!(model.architecture().unwrap(), "llama");
    assert_eq!(model.paths().count(), 3);
    let names: Vec<&str> = model.tensors().iter().map(worker_orcd::gguf::TensorInfo::name).collect();
    assert_eq!(names, NAMES.concat());
    for name in names {
        let tensor = model.tensor(name).unwrap();
        assert_eq!(model.tensor_bytes(tensor), [name.len() as u8; 16], "{name}");
    }
    assert_eq!(model.data_bytes(), 6 * 16);
    model.check_unchanged().unwrap();
}

/// What is wrong, what makes it so in a sound folder, and what the error must say.
type SplitCase = (&'static str, fn(&Path), &'static str);

fn split_cases() -> [SplitCase; 11] {
    [
        (
            "part missing",
            |folder| fs::remove_file(folder.join("model-00002-of-00003.gguf")).unwrap(),
            "part 2 of the 3 named \"model-00001-of-00003.gguf\" is missing",
        ),
        (
            "part out of place",
            |folder| write_part(folder, 2, &NAMES[1], numbered(2, 3, 6)),
            "key \"split.no\": must be 1 in this part, found 2",
        ),
        (
            "number above the count",
            |folder| write_part(folder, 3, &NAMES[2], numbered(9, 3, 6)),
            "must be 2 in this part, found 9",
        ),
        (
            "count of another model",
            |folder| write_part(folder, 2, &NAMES[1], numbered(1, 4, 6)),
            "00002-of-00003.gguf: key \"split.count\": must be 3 in this part, found 4",
        ),
        (
            "name and first part disagree",
            |folder| write_part(folder, 1, &NAMES[0], numbered(0, 2, 6)),
            "00001-of-00003.gguf: key \"split.count\": must be 3 in this part, found 2",
        ),
        (
            "total wrong",
            |folder| write_part(folder, 1, &NAMES[0], numbered(0, 3, 7)),
            "key \"split.tensors.count\": must be 6 in this part, found 7",
        ),
        (
            "total negative",
            |folder| write_part(folder, 1, &NAMES[0], numbered(0, 3, -1)),
            "-1 does not fit u64",
        ),
        (
            "keys missing",
            |folder| write_part(folder, 3, &NAMES[2], |_| {}),
            "00003-of-00003.gguf: key \"split.count\": is missing",
        ),
        (
            "same tensor in two parts",
            |folder| write_part(folder, 3, &["eeeee", "a"], numbered(2, 3, 6)),
            "00003-of-00003.gguf: tensor \"a\": duplicate tensor name",
        ),
        (
            "part of another architecture",
            |folder| {
                write_part(folder, 2, &NAMES[1], |writer| {
                    writer.split(1, 3, 6).unwrap().key("general.architecture", "qwen2").unwrap();
                });
            },
            "this is part of another model",
        ),
        (
            "part cut off",
            |folder| {
                let path = folder.join("model-00003-of-00003.gguf");
                let bytes = fs::read(&path).unwrap();
                fs::write(&path, &bytes[..bytes.len() - 40]).unwrap();
            },
            "00003-of-00003.gguf: tensor \"ffffff\": data of 16 bytes",
        ),
    ]
}

#[test]
fn a_split_model_that_does_not_fit_together_is_refused() {
    for (about, break_it, expected) in split_cases() {
        let folder = tempfile::tempdir().unwrap();
        let first = split_model(folder.path());
        break_it(folder.path());
        let text = refusal(&first);
        assert!(text.contains(expected), "{about}: {text}");
    }
}

#[test]
fn a_split_model_is_opened_by_its_first_part() {
    let folder = tempfile::tempdir().unwrap();
    let first = split_model(folder.path());
    let text = refusal(&folder.path().join("model-00002-of-00003.gguf"));
    assert!(text.contains("is part 2 of 3; open part 1, \"model-00001-of-00003.gguf\""), "{text}");
    let renamed = folder.path().join("renamed.gguf");
    fs::copy(&first, &renamed).unwrap();
    let text = refusal(&renamed);
    assert!(text.contains("split into 3 files, but this file is not named like"), "{text}");
    // A part of one is whole, with split keys or without.
    let only = folder.path().join("only-00001-of-00001.gguf");
    write(&only, &["w"], |_| {});
    Gguf::open(&only).unwrap();
    write(&only, &["w"], numbered(0, 1, 1));
    Gguf::open(&only).unwrap();
}

#[test]
fn a_wrong_type_names_key_and_types() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    write(&path, &[], |writer| {
        writer.key("n", &-1_i64).unwrap().key("s", "text").unwrap().key("x", &f32::NAN).unwrap();
        writer.key("big", &f64::MAX).unwrap().key("a", [1_u8, 2].as_slice()).unwrap();
        writer.key("wide", [1_u64 << 40].as_slice()).unwrap();
    });
    let model = Gguf::open(&path).unwrap();
    let text = |error: worker_orcd::gguf::GgufError| error.to_string();
    assert!(text(model.get_u32("n").unwrap_err()).contains("key \"n\" at byte 37: -1 does not fit u32"));
    assert!(text(model.get_u32("s").unwrap_err()).contains("must be an integer, found string"));
    assert!(text(model.get_u32("a").unwrap_err()).contains("must be an integer, found array of u8"));
    assert!(text(model.get_f32("n").unwrap_err()).contains("must be a float, found i64"));
    assert!(text(model.get_f32("x").unwrap_err()).contains("must be finite"));
    assert!(text(model.get_f32("big").unwrap_err()).contains("must be finite"));
    assert!(text(model.get_bool("n").unwrap_err()).contains("must be a bool, found i64"));
    assert!(text(model.get_str("n").unwrap_err()).contains("must be a string, found i64"));
    let found = |result: Result<(), worker_orcd::gguf::GgufError>| text(result.unwrap_err());
    assert!(found(model.get_str_array("a").map(drop)).contains("an array of strings, found array of u8"));
    assert!(found(model.get_f32_array("a").map(drop)).contains("an array of floats, found array of u8"));
    assert!(found(model.get_bool_array("s").map(drop)).contains("an array of bools, found string"));
    assert!(found(model.get_i32_array("wide").map(drop)).contains("1099511627776 does not fit i32"));
    assert_eq!(model.get_u32("absent").unwrap(), None);
    assert!(text(model.architecture().unwrap_err()).contains("key \"general.architecture\": is missing"));
}

/// Opens a real model and checks all of its tensor data.
fn check_real(path: &Path) -> Gguf {
    let model = Gguf::open(path).unwrap_or_else(|error| panic!("{error}"));
    model.architecture().unwrap_or_else(|error| panic!("{error}"));
    for tensor in model.tensors() {
        let bytes = model.tensor_bytes(tensor);
        assert_eq!(bytes.len() as u64, tensor.bytes);
        let checked = validate_rows(tensor.dtype, bytes).and_then(|()| validate_finite(tensor.dtype, bytes));
        checked.unwrap_or_else(|fault| panic!("{}: {}: {fault}", path.display(), tensor.name()));
    }
    model
}

#[test]
fn the_bundled_model_opens() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/haiku-moe/haiku-moe-mxfp4.gguf");
    let model = check_real(&path);
    assert_eq!(model.architecture().unwrap(), "gpt-oss");
    assert!(model.tensors().iter().any(|tensor| tensor.dtype == DType::MXFP4 && tensor.rank() == 3));
    let tokens = model.get_str_array("tokenizer.ggml.tokens").unwrap().unwrap();
    let embedding = model.tensor("token_embd.weight").unwrap();
    assert_eq!(tokens.len() as u64, embedding.dims[1]);
    assert_eq!(tokens.clone().count(), tokens.len());
    let embedded = Gguf::from_bytes("embedded", fs::read(&path).unwrap()).unwrap();
    assert_eq!(embedded.tensors(), model.tensors());
}

fn gguf_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            gguf_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "gguf") {
            found.push(path);
        }
    }
}

#[test]
fn every_shared_file_opens() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data");
    if !folder.is_dir() {
        println!("SKIPPED: {} is absent", folder.display());
        return;
    }
    let mut files = Vec::new();
    gguf_files(&folder, &mut files);
    assert!(!files.is_empty());
    for path in &files {
        check_real(path);
    }
    println!("{} files", files.len());
}
