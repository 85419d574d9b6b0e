//! What `--device` means: one device, or several, each of which gets a replica of the model.

use std::fmt::{self, Display, Formatter};
use std::str::FromStr;

use bitnet_engine::limits::N_REPLICAS_MAX;
use thiserror::Error;

use crate::failure::Misuse;

/// One device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChosenDevice {
    /// The first GPU if it works, else the processor.
    Auto,
    Cpu,
    /// An NVIDIA GPU by the driver's number.
    Cuda {
        ordinal: usize,
    },
    /// The plain scalar code that defines every result.
    Reference,
}

/// One or several of them: `auto`, `cpu`, `cuda:0,1`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeviceChoice(Vec<ChosenDevice>);

/// What is wrong with a choice.
#[derive(Debug, PartialEq, Eq, Error)]
pub(crate) enum DeviceChoiceError {
    #[error("`{got}` is not auto, cpu, reference, cuda or cuda:NUMBER")]
    Unknown { got: String },
    #[error("auto is one device: name each of several")]
    AutoAmongOthers,
    #[error("a GPU and the processor together: their last bits differ, so what a request gets would depend on who else is there")]
    GpuAmongOthers,
    #[error("{got} devices; at most {limit}")]
    TooMany { got: usize, limit: usize },
}

impl DeviceChoice {
    /// All of them.
    pub(crate) fn all(&self) -> &[ChosenDevice] {
        &self.0
    }

    /// The one device of a verb that has use for no more.
    pub(crate) fn one(&self) -> Result<ChosenDevice, Misuse> {
        match self.0[..] {
            [device] => Ok(device),
            _ => {
                Err(Misuse::new(format!("{} devices, and this takes one", self.0.len()), "serve and batch take several: --device cuda:0,1"))
            }
        }
    }

    /// How many of them share the processor.
    pub(crate) fn n_on_processor(&self) -> usize {
        self.0.iter().filter(|device| **device == ChosenDevice::Cpu).count()
    }
}

impl Default for DeviceChoice {
    fn default() -> Self {
        Self(vec![ChosenDevice::Auto])
    }
}

impl FromStr for DeviceChoice {
    type Err = DeviceChoiceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut devices: Vec<ChosenDevice> = Vec::new();
        for item in text.split(',') {
            let unknown = || DeviceChoiceError::Unknown { got: item.into() };
            let number = |digits: &str| digits.parse::<usize>().map_err(|_| unknown());
            let after_gpu = matches!(devices.last(), Some(ChosenDevice::Cuda { .. }));
            devices.push(match item.split_once(':') {
                None if item == "auto" => ChosenDevice::Auto,
                None if item == "cpu" => ChosenDevice::Cpu,
                None if item == "reference" => ChosenDevice::Reference,
                None if item == "cuda" => ChosenDevice::Cuda { ordinal: 0 },
                None if after_gpu => ChosenDevice::Cuda { ordinal: number(item)? },
                Some(("cuda", digits)) => ChosenDevice::Cuda { ordinal: number(digits)? },
                _ => return Err(unknown()),
            });
        }
        if devices.len() > 1 && devices.contains(&ChosenDevice::Auto) {
            return Err(DeviceChoiceError::AutoAmongOthers);
        }
        let is_gpu = |device: &ChosenDevice| matches!(device, ChosenDevice::Cuda { .. });
        if devices.iter().any(is_gpu) && !devices.iter().all(is_gpu) {
            return Err(DeviceChoiceError::GpuAmongOthers);
        }
        if devices.len() > N_REPLICAS_MAX {
            return Err(DeviceChoiceError::TooMany { got: devices.len(), limit: N_REPLICAS_MAX });
        }
        Ok(Self(devices))
    }
}

impl Display for ChosenDevice {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda { ordinal } => write!(f, "cuda:{ordinal}"),
            Self::Reference => f.write_str("reference"),
        }
    }
}

impl Display for DeviceChoice {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&names.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choice_is_one_device_or_a_list_of_them() {
        let parsed = |text: &str| text.parse::<DeviceChoice>().map(|choice| choice.0);
        let cuda = |ordinal| ChosenDevice::Cuda { ordinal };
        assert_eq!(parsed("auto"), Ok(vec![ChosenDevice::Auto]));
        assert_eq!(parsed("cuda"), Ok(vec![cuda(0)]));
        assert_eq!(parsed("cuda:3"), Ok(vec![cuda(3)]));
        assert_eq!(parsed("cuda:0,1,5"), Ok(vec![cuda(0), cuda(1), cuda(5)]));
        assert_eq!(parsed("cuda:0,cuda:1"), Ok(vec![cuda(0), cuda(1)]));
        assert_eq!(parsed("cpu,cpu"), Ok(vec![ChosenDevice::Cpu; 2]));
    }

    #[test]
    fn choice_that_means_nothing_is_refused_by_name() {
        let refused = |text: &str| text.parse::<DeviceChoice>().err();
        for (text, got) in
            [("", ""), ("gpu", "gpu"), ("cuda:", "cuda:"), ("cuda:-1", "cuda:-1"), ("1", "1"), ("cpu,1", "1"), ("cuda:0,", "")]
        {
            assert_eq!(refused(text), Some(DeviceChoiceError::Unknown { got: got.into() }), "{text}");
        }
        assert_eq!(refused("cuda:0,auto"), Some(DeviceChoiceError::AutoAmongOthers));
        assert_eq!(refused("cuda:0,cpu"), Some(DeviceChoiceError::GpuAmongOthers));
        let many = vec!["cpu"; N_REPLICAS_MAX + 1].join(",");
        assert_eq!(refused(&many), Some(DeviceChoiceError::TooMany { got: N_REPLICAS_MAX + 1, limit: N_REPLICAS_MAX }));
    }

    #[test]
    fn verb_of_one_device_refuses_several() {
        assert_eq!("cpu".parse::<DeviceChoice>().expect("valid").one().ok(), Some(ChosenDevice::Cpu));
        assert!("cuda:0,1".parse::<DeviceChoice>().expect("valid").one().is_err());
        assert_eq!("cuda,1".parse::<DeviceChoice>().expect("valid").to_string(), "cuda:0,cuda:1");
    }
}
