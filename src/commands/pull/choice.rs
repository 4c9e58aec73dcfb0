//! Which files of a repository are meant: one .gguf, or all parts of one that is split.

use std::collections::BTreeMap;

use super::error::PullError;
use super::hub::RepositoryFile;

/// What parts beside a language model are called, which nobody means by the model.
const BESIDE: &str = "mmproj";

/// The names of the files to pull: the one called `wanted`, else those of the only model whose name holds it, else
/// those of the only model.
///
/// # Errors
/// None is meant, or several may be.
pub(super) fn choose(files: &[RepositoryFile], wanted: Option<&str>) -> Result<Vec<String>, PullError> {
    let mut models: BTreeMap<String, Vec<&RepositoryFile>> = BTreeMap::new();
    for file in files.iter().filter(|file| is_gguf(&file.name)) {
        models.entry(whole(&file.name)).or_default().push(file);
    }
    let names = |parts: &[&RepositoryFile]| {
        let mut names: Vec<String> = parts.iter().map(|part| part.name.clone()).collect();
        names.sort();
        names
    };
    if let Some(wanted) = wanted
        && let Some(file) = files.iter().find(|file| file.name == wanted)
    {
        return Ok(models.get(&whole(wanted)).map_or_else(|| vec![file.name.clone()], |parts| names(parts)));
    }
    let part = wanted.unwrap_or_default().to_lowercase();
    let mut meant: Vec<_> = models.iter().filter(|(name, _)| name.to_lowercase().contains(&part)).collect();
    if meant.len() > 1 {
        meant.retain(|(name, _)| !base(name).to_lowercase().starts_with(BESIDE));
    }
    match meant.as_slice() {
        [] => Err(PullError::NoSuchFile { wanted: wanted.map(str::to_owned) }),
        [(_, parts)] => Ok(names(parts)),
        several => Err(PullError::Several(several.iter().map(|(_, parts)| line(parts)).collect())),
    }
}

fn is_gguf(name: &str) -> bool {
    name.to_lowercase().ends_with(".gguf")
}

fn base(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

/// The name without the number of a part, the same for all parts of one model.
fn whole(name: &str) -> String {
    let Some((stem, ending)) = name.rsplit_once('.') else { return name.to_owned() };
    let number = |part: &str| part.len() == 5 && part.bytes().all(|b| b.is_ascii_digit());
    let mut parts = stem.rsplitn(4, '-');
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(count), Some("of"), Some(part), Some(model)) if number(count) && number(part) => {
            format!("{model}-of-{count}.{ending}")
        }
        _ => name.to_owned(),
    }
}

fn line(parts: &[&RepositoryFile]) -> String {
    let name = parts.iter().map(|part| part.name.as_str()).min().unwrap_or_default();
    let bytes: Option<u64> = parts.iter().map(|part| part.bytes).sum();
    let size = bytes.map(|bytes| format!("  {:.2} GB", bytes as f64 / 1e9)).unwrap_or_default();
    let count = if parts.len() > 1 { format!(", {} files", parts.len()) } else { String::new() };
    format!("  {name}{size}{count}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(names: &[&str]) -> Vec<RepositoryFile> {
        names.iter().map(|name| RepositoryFile { name: (*name).into(), bytes: Some(1_500_000_000) }).collect()
    }

    #[test]
    fn the_only_model_needs_no_name() {
        let chosen = choose(&files(&["README.md", "m.gguf", "mmproj-m.gguf"]), None).unwrap();
        assert_eq!(chosen, ["m.gguf"]);
        let split = files(&["m-00002-of-00002.gguf", "m-00001-of-00002.gguf", "config.json"]);
        let all = ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"];
        assert_eq!(choose(&split, None).unwrap(), all);
        assert_eq!(choose(&split, Some(all[0])).unwrap(), all, "one part means all");
        assert_eq!(choose(&split, Some("config.json")).unwrap(), ["config.json"]);
    }

    #[test]
    fn a_part_of_the_name_is_enough_if_it_means_one() {
        let repository = files(&["m-Q4_K_M.gguf", "m-Q8_0.gguf", "q/m-F16-00001-of-00001.gguf"]);
        assert_eq!(choose(&repository, Some("q4_k_m")).unwrap(), ["m-Q4_K_M.gguf"]);
        assert_eq!(choose(&repository, Some("f16")).unwrap(), ["q/m-F16-00001-of-00001.gguf"]);
        let several = choose(&repository, None).unwrap_err().to_string();
        assert!(several.contains("\n  m-Q8_0.gguf  1.50 GB\n") && several.contains("F16"), "{several}");
        assert!(choose(&repository, Some("Q5")).unwrap_err().to_string().contains("\"Q5\""));
        assert!(choose(&files(&["README.md"]), None).unwrap_err().to_string().contains("no .gguf"));
    }
}
