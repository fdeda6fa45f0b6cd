use xent::{Backend, internals};
#[test]
fn smoke() {
    for &b in Backend::available() {
        let x = [1.0, 2.0, 3.0, -1e4, 0.25];
        println!(
            "{b} {:?} {:?} {:?}",
            internals::row_loss_f64(b, &x, 0),
            internals::row_lse_f64(b, &x, 0),
            internals::logsumexp_f64(b, &x)
        );
        let e: Vec<f64> = x.iter().map(|v| v - 1.0).collect();
        println!("{}", e.iter().map(|v| v.exp()).sum::<f64>().ln());
        let mut y = x;
        internals::softmax_f64(b, &mut y).unwrap();
        println!("{y:?}");
        let mut y = x;
        internals::log_softmax_f64(b, &mut y).unwrap();
        println!("{y:?}");
        let mut y = x;
        internals::exp_f64(b, &mut y).unwrap();
        println!("{y:?}");
        println!(
            "{:?} {:?}",
            internals::argmax_f64(b, &x),
            internals::sum_from_f64(b, &x, Some(&[1., 2., 3., 0., 1.]), 0.1)
        );
        for (t, o) in [
            (0., 600.),
            (0., 690.),
            (800., 0.),
            (1e300, 1e300),
            (-1e308, 1e308),
            (1e308, -1e308),
            (1e6, 1e6 + 1.),
        ] {
            println!(
                "{:?} {:?}",
                internals::row_loss_f64(b, &[t, -o], 0),
                internals::row_lse_f64(b, &[t, o], 0)
            );
        }
    }
}
