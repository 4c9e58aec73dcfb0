//! Models split over several files: their names and the keys that tie them together.

use std::path::{Path, PathBuf};

use super::error::{GgufError, Rule, Subject};
use super::part::Part;
use super::tensor::TensorInfo;

/// Key of a part's number, from 0.
pub(super) const NUMBER_KEY: &str = "split.no";
/// Key of the number of parts.
pub(super) const COUNT_KEY: &str = "split.count";
/// Key of the number of tensors in all parts.
pub(super) const TENSORS_KEY: &str = "split.tensors.count";

const ARCHITECTURE_KEY: &str = "general.architecture";

/// The file name of part `number` (from 1) of `count`: `<prefix>-00001-of-00003.gguf`.
pub fn split_file_name(prefix: &str, number: u32, count: u32) -> String {
    format!("{prefix}-{number:05}-of-{count:05}.gguf")
}

/// A file name that says it is one part of several.
#[derive(Debug, PartialEq, Eq)]
struct PartName<'a> {
    prefix: &'a str,
    number: u32,
    count: u32,
}

impl<'a> PartName<'a> {
    fn parse(file_name: &'a str) -> Option<Self> {
        let (rest, count) = file_name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
        let (prefix, number) = rest.rsplit_once('-')?;
        let (number, count) = (five_digits(number)?, five_digits(count)?);
        (1..=count).contains(&number).then_some(Self { prefix, number, count })
    }
}

fn five_digits(text: &str) -> Option<u32> {
    (text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok())?
}

/// Refuses a file that says it is one part of several.
pub(super) fn require_whole(part: &Part) -> Result<(), GgufError> {
    match part.integer::<u16>(COUNT_KEY, "u16")?.map(u32::from) {
        None | Some(0 | 1) => Ok(()),
        Some(count) => Err(part.invalid(Subject::key(COUNT_KEY), Rule::SplitName { count })),
    }
}

/// Opens the parts that follow `first`, the file at `path`, and appends their tensors; none when the model is whole.
pub(super) fn open_rest(
    path: &Path,
    first: &Part,
    tensors: &mut Vec<TensorInfo>,
) -> Result<Vec<Part>, GgufError> {
    let name = path.file_name().and_then(|name| name.to_str()).and_then(PartName::parse);
    let key_count = first.integer::<u16>(COUNT_KEY, "u16")?.map(u32::from);
    let (prefix, count) = match (name, key_count) {
        (None, _) => return require_whole(first).map(|()| Vec::new()),
        (Some(PartName { prefix, number, count }), _) if number > 1 => {
            let first_name = split_file_name(prefix, 1, count);
            let rule = Rule::NotFirstPart { number, count, first: first_name };
            return Err(first.invalid(Subject::File, rule));
        }
        // One part of one may well carry no split keys.
        (Some(PartName { count: 1, .. }), None) => return Ok(Vec::new()),
        (Some(PartName { prefix, count, .. }), _) => (prefix, count),
    };
    check_keys(first, 0, count)?;
    let mut rest = Vec::new();
    for number in 2..=count {
        let part_path = path.with_file_name(split_file_name(prefix, number, count));
        rest.push(open_part(part_path, first, prefix, number, count, tensors)?);
    }
    let found = tensors.len() as u64;
    for part in std::iter::once(first).chain(&rest) {
        match part.integer::<u64>(TENSORS_KEY, "u64")? {
            Some(total) if total == found => {}
            Some(total) => {
                let rule = Rule::SplitValue { expected: found, found: total };
                return Err(part.invalid(Subject::key(TENSORS_KEY), rule));
            }
            None => return Err(part.invalid(Subject::key(TENSORS_KEY), Rule::MissingKey)),
        }
    }
    Ok(rest)
}

fn open_part(
    path: PathBuf,
    first: &Part,
    prefix: &str,
    number: u32,
    count: u32,
    tensors: &mut Vec<TensorInfo>,
) -> Result<Part, GgufError> {
    let part = Part::open(path, number - 1, tensors).map_err(|error| match error {
        GgufError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            let rule = Rule::MissingPart { number, count, first: split_file_name(prefix, 1, count) };
            first.invalid(Subject::File, rule)
        }
        other => other,
    })?;
    check_keys(&part, number - 1, count)?;
    if let Some(architecture) = part.string(ARCHITECTURE_KEY)?
        && first.string(ARCHITECTURE_KEY)? != Some(architecture)
    {
        return Err(part.invalid(Subject::key(ARCHITECTURE_KEY), Rule::OtherModel));
    }
    Ok(part)
}

/// Checks that `part` calls itself part `index` (from 0) of `count`.
fn check_keys(part: &Part, index: u32, count: u32) -> Result<(), GgufError> {
    for (key, expected) in [(COUNT_KEY, count), (NUMBER_KEY, index)] {
        let expected = u64::from(expected);
        match part.integer::<u64>(key, "u64")? {
            Some(found) if found == expected => {}
            Some(found) => {
                return Err(part.invalid(Subject::key(key), Rule::SplitValue { expected, found }));
            }
            None => return Err(part.invalid(Subject::key(key), Rule::MissingKey)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn part_names_are_exact() {
        let name = PartName::parse("gpt-oss-of-x-120b-00002-of-00003.gguf");
        assert_eq!(name, Some(PartName { prefix: "gpt-oss-of-x-120b", number: 2, count: 3 }));
        for other in [
            "model.gguf",
            "model-00000-of-00003.gguf",
            "model-00004-of-00003.gguf",
            "model-1-of-3.gguf",
            "model-0000١-of-00003.gguf",
            "model-+0001-of-00003.gguf",
            "model-00001-of-00003.bin",
        ] {
            assert_eq!(PartName::parse(other), None, "{other}");
        }
        assert_eq!(split_file_name("m", 1, 12), "m-00001-of-00012.gguf");
    }
}
