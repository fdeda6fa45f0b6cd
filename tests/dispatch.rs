//! Which backend runs: detection, names, `XENT_BACKEND`.

use common::{command, fastest};
use xent::{Backend, CrossEntropy, Error, Logits, Softmax, reference};

/// A backend that is quietly missing would only be slow: say what there must be.
#[test]
fn backends_are_those_that_the_cpu_has() {
    let mut expected = vec![Backend::Scalar, Backend::Portable];
    // Every 64-bit Arm CPU has it.
    #[cfg(target_arch = "aarch64")]
    expected.push(Backend::Neon);
    #[cfg(target_arch = "x86_64")]
    {
        let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        let avx512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("fma");
        println!("the CPU has AVX2 and FMA: {avx2}, AVX-512: {avx512}");
        expected.extend(avx2.then_some(Backend::Avx2));
        expected.extend(avx512.then_some(Backend::Avx512));
    }
    assert_eq!(Backend::available(), expected);
    for &backend in Backend::ALL {
        assert_eq!(backend.is_available(), expected.contains(&backend), "{backend}");
    }
}

#[test]
fn names_round_trip() {
    let names: Vec<String> = Backend::ALL.iter().map(Backend::to_string).collect();
    assert_eq!(names, ["scalar", "portable", "neon", "avx2", "avx512"]);
    for &backend in Backend::ALL {
        assert_eq!(backend.name().parse(), Ok(backend));
        assert_eq!(backend.to_string().to_uppercase().parse(), Ok(backend));
        assert_eq!(format!("[{backend:>9}]").len(), 11);
    }
    for name in ["", "avx", "avx2 ", "neon2", "sse2", "auto"] {
        let error = name.parse::<Backend>().unwrap_err();
        let available = Backend::available();
        assert_eq!(error, Error::UnknownBackend { name: name.to_owned(), available });
        assert!(error.to_string().ends_with(&format!(", {}", fastest())), "{error}");
    }
}

/// Every call with every backend forced; those that are not there are refused by name.
#[test]
fn a_forced_backend_runs_or_is_refused() {
    let logits = Logits::new(&[1.0, 2.0, 3.0], 1, 3).unwrap();
    for &backend in Backend::ALL {
        let ce = CrossEntropy::new().backend(backend);
        let softmax = Softmax::new().backend(backend);
        let losses = ce.forward(logits, &[2i64]);
        let mut p = [-1.0; 3];
        let ran = softmax.softmax(logits, &mut p);
        if backend.is_available() {
            println!("backend {backend}: run");
            let exact = reference::row(logits.row(0), 2).loss;
            assert!(reference::ulp_error(losses.unwrap() as f32, exact) <= 2.0);
            assert_eq!(ran, Ok(()));
        } else {
            println!("backend {backend}: skipped, this machine cannot run it");
            let available = Backend::available();
            let error = Error::BackendUnavailable { requested: backend, available };
            assert_eq!(losses, Err(error.clone()));
            assert_eq!((ran, p), (Err(error), [-1.0; 3]));
        }
    }
}

/// What a process with another environment reports, by the test below.
fn report(variable: Option<&str>) -> String {
    let mut command = command(std::env::current_exe().unwrap());
    command.args(["--exact", "dispatch::report_for_other_tests", "--ignored", "--nocapture"]);
    match variable {
        Some(value) => command.env("XENT_BACKEND", value),
        None => command.env_remove("XENT_BACKEND"),
    };
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let stdout = String::from_utf8(output.stdout).unwrap();
    let reports = stdout.lines().filter_map(|line| line.split_once("report: "));
    reports.map(|(_, report)| report).collect::<Vec<_>>().join("\n")
}

#[test]
#[ignore = "not a test: started by the other tests, in a process with its own environment"]
fn report_for_other_tests() {
    let logits = Logits::new(&[1.0, 2.0, 3.0], 1, 3).unwrap();
    let implicit = CrossEntropy::new().forward(logits, &[2i64]);
    let forced = CrossEntropy::new().backend(Backend::Scalar).forward(logits, &[2i64]);
    let mut p = [0.0; 3];
    let softmax = Softmax::new().softmax(logits, &mut p);
    assert_eq!(implicit.is_ok(), softmax.is_ok());
    assert!(forced.is_ok(), "the API wins over the environment");
    // In front, so that a line of the test harness without an end does no harm.
    println!();
    match Backend::selected() {
        Ok(backend) => println!("report: {backend} {}", implicit.is_ok()),
        Err(error) => {
            assert_eq!(implicit, Err(error.clone()));
            println!("report: {error}");
        }
    }
}

#[test]
fn without_the_variable_the_fastest_is_selected() {
    assert_eq!(report(None), format!("{} true", fastest()));
    assert_eq!(report(Some("")), format!("{} true", fastest()));
}

#[test]
fn the_variable_selects_a_backend() {
    let available: Vec<&str> = Backend::available().iter().map(|b| b.name()).collect();
    let available = available.join(", ");
    for &backend in Backend::ALL {
        let got = report(Some(&backend.name().to_uppercase()));
        if backend.is_available() {
            assert_eq!(got, format!("{backend} true"));
        } else {
            let want = format!("backend `{backend}` is not available here; available: {available}");
            assert_eq!(got, want);
        }
    }
    let want = format!("unknown backend `sse9`; available: {available}");
    assert_eq!(report(Some("sse9")), want);
}
