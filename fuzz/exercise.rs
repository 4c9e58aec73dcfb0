//! What the fuzz target and the mutation tests do with any bytes: open them as a model and, if that succeeds, touch
//! everything a user of the reader could.

use worker_orcd::gguf::{Gguf, GgufError, Value, validate_finite, validate_rows};

/// Opens `bytes` and looks at every key and tensor in every way; the sizes seen must agree with the file's.
pub(crate) fn exercise(bytes: Vec<u8>) -> Result<Gguf, GgufError> {
    let length = bytes.len() as u64;
    let file = Gguf::from_bytes("bytes", bytes)?;
    assert_eq!(file.file_bytes(), length);
    let mut keys = 0_usize;
    for (key, value) in file.metadata() {
        keys += 1;
        assert_eq!(file.value(key).map(|value| value.kind()), Some(value.kind()), "{key}");
        let _ = (file.get_u32(key), file.get_u64(key), file.get_i32(key), file.get_f32(key));
        let _ = (file.get_bool(key), file.get_str(key).is_ok(), format!("{value:?}"));
        if let Ok(Some(strings)) = file.get_str_array(key) {
            assert_eq!(strings.len(), strings.count());
        }
        if let Ok(Some(floats)) = file.get_f32_array(key) {
            assert_eq!(floats.len(), floats.count());
        }
        if let Ok(Some(integers)) = file.get_i32_array(key) {
            assert_eq!(integers.len(), integers.count());
        }
        if let Ok(Some(flags)) = file.get_bool_array(key) {
            assert_eq!(flags.len(), flags.count());
        }
        if let Value::Array(array) = value {
            assert_eq!(array.iter().count(), array.len(), "{key}");
        }
    }
    assert!(keys as u64 * 14 <= length);
    let mut data_bytes = 0;
    for tensor in file.tensors() {
        assert_eq!(file.tensor(tensor.name()), Some(tensor));
        let bytes = file.tensor_bytes(tensor);
        assert_eq!(bytes.len() as u64, tensor.bytes, "{}", tensor.name());
        assert_eq!(tensor.rows() * tensor.row_bytes(), tensor.bytes, "{}", tensor.name());
        let _ = (validate_rows(tensor.dtype, bytes), validate_finite(tensor.dtype, bytes));
        data_bytes += tensor.bytes;
    }
    assert_eq!(file.data_bytes(), data_bytes);
    assert!(data_bytes <= length);
    let _ = (file.architecture().is_ok(), file.file_type(), file.alignment(), file.version());
    Ok(file)
}
