//! Which backend runs: the one that was asked for, or the fastest that there is.

use crate::data::error::Error;
use crate::simd::backend::{Backend, Kernels};
use std::str::FromStr;
use std::sync::OnceLock;

impl Backend {
    /// The backend that is used where none is asked for: that of `XENT_BACKEND`, or the fastest.
    ///
    /// # Errors
    /// [`Error::UnknownBackend`] or [`Error::BackendUnavailable`] for a bad `XENT_BACKEND`.
    pub fn selected() -> Result<Backend, Error> {
        static SELECTED: OnceLock<Result<Backend, Error>> = OnceLock::new();
        SELECTED
            .get_or_init(|| match std::env::var_os("XENT_BACKEND") {
                Some(name) if !name.is_empty() => {
                    let backend = name.to_string_lossy().parse::<Backend>()?;
                    kernels_of(backend).map(|_| backend)
                }
                _ => Ok(Self::available()[Self::available().len() - 1]),
            })
            .clone()
    }

    /// The kernels of `backend`, or of the selected one.
    pub(crate) fn kernels(backend: Option<Backend>) -> Result<Kernels, Error> {
        kernels_of(backend.map_or_else(Backend::selected, Ok)?)
    }
}

fn kernels_of(backend: Backend) -> Result<Kernels, Error> {
    Kernels::of(backend).ok_or_else(|| Error::BackendUnavailable {
        requested: backend,
        available: Backend::available(),
    })
}

impl FromStr for Backend {
    type Err = Error;

    /// The backend of that [name](Backend::name), in any case, available or not.
    fn from_str(name: &str) -> Result<Self, Error> {
        Self::ALL.iter().copied().find(|b| b.name().eq_ignore_ascii_case(name)).ok_or_else(|| {
            Error::UnknownBackend { name: name.to_owned(), available: Self::available() }
        })
    }
}
