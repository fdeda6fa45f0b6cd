//! Numbers in JSON, which has neither NaN nor infinities.
#![forbid(unsafe_code)]

use serde::ser::{Serialize, SerializeMap, Serializer};
use xent::Estimate;

/// What a number is, for its sibling `<key>_is`.
pub(crate) fn kind(x: f64) -> &'static str {
    if x.is_nan() {
        "nan"
    } else if x == f64::INFINITY {
        "inf"
    } else if x == f64::NEG_INFINITY {
        "-inf"
    } else {
        "finite"
    }
}

/// An entry of an object, to be flattened into it. Where its value is null, a second one,
/// `<key>_is`, says why.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Field<V> {
    key: &'static str,
    pub(crate) value: V,
    is: Option<&'static str>,
}

impl<R: Copy + Into<f64>> Field<R> {
    /// A number, which the serializer writes as null if it is not finite.
    pub(crate) fn number(key: &'static str, value: R) -> Self {
        let is = (!value.into().is_finite()).then(|| kind(value.into()));
        Field { key, value, is }
    }
}

impl Field<i64> {
    pub(crate) fn integer(key: &'static str, value: i64) -> Self {
        Field { key, value, is: None }
    }
}

impl<V> Field<Option<V>> {
    /// A number that may be another word for null: that there is none.
    pub(crate) fn none(key: &'static str) -> Self {
        Field { key, value: None, is: Some("none") }
    }

    pub(crate) fn some(Field { key, value, is }: Field<V>) -> Self {
        Field { key, value: Some(value), is }
    }
}

impl<V: Serialize> Serialize for Field<V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        entry(&mut map, self.key, &self.value, self.is)?;
        map.end()
    }
}

/// A statistic, to be flattened into an object: `<key>`, and its standard error as `<key>_stderr`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Statistic {
    key: &'static str,
    estimate: Estimate,
}

impl Statistic {
    pub(crate) fn new(key: &'static str, estimate: Estimate) -> Self {
        Statistic { key, estimate }
    }
}

impl Serialize for Statistic {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Statistic { key, estimate: Estimate { value, stderr } } = self;
        let mut map = serializer.serialize_map(None)?;
        number(&mut map, key, *value)?;
        number(&mut map, &format!("{key}_stderr"), *stderr)?;
        map.end()
    }
}

fn number<M: SerializeMap>(map: &mut M, key: &str, value: f64) -> Result<(), M::Error> {
    entry(map, key, &value, (!value.is_finite()).then(|| kind(value)))
}

fn entry<M: SerializeMap>(
    map: &mut M,
    key: &str,
    value: &impl Serialize,
    is: Option<&'static str>,
) -> Result<(), M::Error> {
    map.serialize_entry(key, value)?;
    match is {
        Some(is) => map.serialize_entry(&format!("{key}_is"), is),
        None => Ok(()),
    }
}

/// Numbers by their keys, which are numbers too.
#[derive(Debug)]
pub(crate) struct ByNumber<const N: usize> {
    pub(crate) keys: [f64; N],
    pub(crate) values: [f64; N],
}

impl<const N: usize> Serialize for ByNumber<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (key, &value) in self.keys.iter().zip(&self.values) {
            number(&mut map, &key.to_string(), value)?;
        }
        map.end()
    }
}
