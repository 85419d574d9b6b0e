//! GGUF metadata values and typed access to them. A value of another type than a key calls for is an error that names the key, the
//! type it should have and the type it has; nothing is reinterpreted (llama.cpp#26690).
//!
//! Writers disagree on the width and sign of integers, so any integer type that holds the number is accepted where a count or an
//! id is due, and either float type where a number is due. Nothing else is.
#![deny(clippy::arithmetic_side_effects)]

use std::collections::HashMap;

use crate::error::CheckpointError;

/// The 13 value types, with their ids in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum ValueType {
    U8 = 0,
    I8 = 1,
    U16 = 2,
    I16 = 3,
    U32 = 4,
    I32 = 5,
    F32 = 6,
    Bool = 7,
    String = 8,
    Array = 9,
    U64 = 10,
    I64 = 11,
    F64 = 12,
}

impl ValueType {
    pub(super) const ALL: [Self; 13] = [
        Self::U8,
        Self::I8,
        Self::U16,
        Self::I16,
        Self::U32,
        Self::I32,
        Self::F32,
        Self::Bool,
        Self::String,
        Self::Array,
        Self::U64,
        Self::I64,
        Self::F64,
    ];

    pub(super) fn from_id(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|&value_type| value_type as u32 == id)
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::U8 => "u8",
            Self::I8 => "i8",
            Self::U16 => "u16",
            Self::I16 => "i16",
            Self::U32 => "u32",
            Self::I32 => "i32",
            Self::F32 => "f32",
            Self::Bool => "bool",
            Self::String => "string",
            Self::Array => "array",
            Self::U64 => "u64",
            Self::I64 => "i64",
            Self::F64 => "f64",
        }
    }

    /// Bytes of a value of fixed size; `None` for strings and arrays.
    pub(super) const fn fixed_bytes(self) -> Option<u64> {
        match self {
            Self::U8 | Self::I8 | Self::Bool => Some(1),
            Self::U16 | Self::I16 => Some(2),
            Self::U32 | Self::I32 | Self::F32 => Some(4),
            Self::U64 | Self::I64 | Self::F64 => Some(8),
            Self::String | Self::Array => None,
        }
    }
}

/// A metadata value. Arrays stay packed until someone asks for them, so that a vocabulary nobody needs costs one copy.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Integer {
        value: i128,
        stored_as: ValueType,
    },
    Float {
        value: f64,
        stored_as: ValueType,
    },
    Bool(bool),
    String(String),
    /// Elements of fixed size, little-endian.
    Numbers {
        element: ValueType,
        bytes: Vec<u8>,
    },
    /// Strings end to end, with the end of each.
    Strings {
        bytes: Vec<u8>,
        ends: Vec<usize>,
    },
}

impl Value {
    /// A value of fixed size from its little-endian bytes. `None` for strings and arrays, wrong lengths, and bools that are neither.
    pub(super) fn from_fixed(value_type: ValueType, bytes: &[u8]) -> Option<Self> {
        let integer = |value: i128| Some(Self::Integer { value, stored_as: value_type });
        let float = |value: f64| Some(Self::Float { value, stored_as: value_type });
        match value_type {
            ValueType::U8 => integer(u8::from_le_bytes(bytes.try_into().ok()?).into()),
            ValueType::I8 => integer(i8::from_le_bytes(bytes.try_into().ok()?).into()),
            ValueType::U16 => integer(u16::from_le_bytes(bytes.try_into().ok()?).into()),
            ValueType::I16 => integer(i16::from_le_bytes(bytes.try_into().ok()?).into()),
            ValueType::U32 => integer(u32::from_le_bytes(bytes.try_into().ok()?).into()),
            ValueType::I32 => integer(i32::from_le_bytes(bytes.try_into().ok()?).into()),
            ValueType::U64 => integer(u64::from_le_bytes(bytes.try_into().ok()?).into()),
            ValueType::I64 => integer(i64::from_le_bytes(bytes.try_into().ok()?).into()),
            ValueType::F32 => float(f32::from_le_bytes(bytes.try_into().ok()?).into()),
            ValueType::F64 => float(f64::from_le_bytes(bytes.try_into().ok()?)),
            ValueType::Bool => match bytes {
                [0] => Some(Self::Bool(false)),
                [1] => Some(Self::Bool(true)),
                _ => None,
            },
            ValueType::String | ValueType::Array => None,
        }
    }

    fn type_name(&self) -> String {
        match self {
            Self::Integer { stored_as, .. } | Self::Float { stored_as, .. } => stored_as.name().into(),
            Self::Bool(_) => "bool".into(),
            Self::String(_) => "string".into(),
            Self::Numbers { element, .. } => format!("array of {}", element.name()),
            Self::Strings { .. } => "array of string".into(),
        }
    }
}

/// All metadata of a file.
#[derive(Debug, Default)]
pub(super) struct Metadata {
    entries: HashMap<String, Value>,
}

impl Metadata {
    /// Adds a key; `false` if it was there already.
    pub(super) fn insert(&mut self, key: String, value: Value) -> bool {
        match self.entries.entry(key) {
            std::collections::hash_map::Entry::Occupied(_) => false,
            std::collections::hash_map::Entry::Vacant(vacant) => {
                vacant.insert(value);
                true
            }
        }
    }

    /// The least key that begins with `prefix`.
    pub(super) fn key_with_prefix(&self, prefix: &str) -> Option<&str> {
        self.entries.keys().filter(|key| key.starts_with(prefix)).min().map(String::as_str)
    }

    fn typed<'a, T>(&'a self, key: &str, expected: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>, CheckpointError> {
        let Some(value) = self.entries.get(key) else { return Ok(None) };
        match read(value) {
            Some(value) => Ok(Some(value)),
            None => Err(CheckpointError::config(key, format!("expected {expected}, got {}", value.type_name()))),
        }
    }

    /// Text.
    pub(super) fn string(&self, key: &str) -> Result<Option<&str>, CheckpointError> {
        self.typed(key, "string", |value| match value {
            Value::String(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// A flag.
    pub(super) fn bool(&self, key: &str) -> Result<Option<bool>, CheckpointError> {
        self.typed(key, "bool", |value| match value {
            Value::Bool(flag) => Some(*flag),
            _ => None,
        })
    }

    /// A finite number of either float type.
    pub(super) fn float(&self, key: &str) -> Result<Option<f64>, CheckpointError> {
        let number = self.typed(key, "f32 or f64", |value| match value {
            Value::Float { value, .. } => Some(*value),
            _ => None,
        })?;
        match number {
            Some(value) if !value.is_finite() => Err(CheckpointError::config(key, format!("{value} is not a number"))),
            other => Ok(other),
        }
    }

    /// A count, size or id of any integer type, if it fits `T`.
    pub(super) fn integer<T: TryFrom<i128>>(&self, key: &str) -> Result<Option<T>, CheckpointError> {
        let value = self.typed(key, "an integer", |value| match value {
            Value::Integer { value, .. } => Some(*value),
            _ => None,
        })?;
        let out_of_range = |value| CheckpointError::config(key, format!("{value} is not in range"));
        value.map(|value| T::try_from(value).map_err(|_| out_of_range(value))).transpose()
    }

    /// An array of text.
    pub(super) fn strings(&self, key: &str) -> Result<Option<Vec<String>>, CheckpointError> {
        let packed = self.typed(key, "array of string", |value| match value {
            Value::Strings { bytes, ends } => Some((bytes.as_slice(), ends.as_slice())),
            // An empty array says nothing of its elements.
            Value::Numbers { bytes, .. } if bytes.is_empty() => Some((&[][..], &[][..])),
            _ => None,
        })?;
        let Some((bytes, ends)) = packed else { return Ok(None) };
        let text = std::str::from_utf8(bytes).map_err(|_| CheckpointError::config(key, "a string is not UTF-8"))?;
        let mut strings = Vec::with_capacity(ends.len());
        let mut start = 0;
        for &end in ends {
            let string = text.get(start..end).ok_or_else(|| CheckpointError::config(key, "a string is not UTF-8"))?;
            strings.push(string.to_owned());
            start = end;
        }
        Ok(Some(strings))
    }

    /// Number of strings of an array of text.
    pub(super) fn n_strings(&self, key: &str) -> Result<Option<usize>, CheckpointError> {
        self.typed(key, "array of string", |value| match value {
            Value::Strings { ends, .. } => Some(ends.len()),
            _ => None,
        })
    }

    /// An array of f32.
    pub(super) fn floats(&self, key: &str) -> Result<Option<Vec<f32>>, CheckpointError> {
        self.typed(key, "array of f32", |value| match value {
            Value::Numbers { element: ValueType::F32, bytes } => {
                Some(bytes.chunks_exact(4).map(|chunk| f32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]])).collect())
            }
            _ => None,
        })
    }

    /// An array of integers of any type, each of which fits `T`.
    pub(super) fn integers<T: TryFrom<i128>>(&self, key: &str) -> Result<Option<Vec<T>>, CheckpointError> {
        let values = self.typed(key, "array of integers", |value| match value {
            Value::Numbers { element, bytes } => packed_integers(*element, bytes),
            _ => None,
        })?;
        let Some(values) = values else { return Ok(None) };
        let out_of_range = |value| CheckpointError::config(key, format!("element {value} is not in range"));
        values.into_iter().map(|value| T::try_from(value).map_err(|_| out_of_range(value))).collect::<Result<_, _>>().map(Some)
    }
}

fn packed_integers(element: ValueType, bytes: &[u8]) -> Option<Vec<i128>> {
    let size = usize::try_from(element.fixed_bytes()?).ok()?;
    let read = |chunk: &[u8]| match Value::from_fixed(element, chunk)? {
        Value::Integer { value, .. } => Some(value),
        _ => None,
    };
    bytes.chunks_exact(size).map(read).collect()
}
