//! Where nodes are and how long light takes between them.
//!
//! A region is a disc on the globe with a few cities in it; nodes are near cities. One way takes the
//! great-circle distance at two thirds of the speed of light, times [`PATH_STRETCH`] because fibres
//! do not follow great circles, plus the access lines of both ends. What this module does *not* do:
//! model routers, congestion in the core, or asymmetric routes.

use serde::Deserialize;

use crate::dice::Dice;

/// How much longer fibres are than great circles (Bozkurt and others, PAM 2017, find about 1.5 to 2
/// at the median).
const PATH_STRETCH: f64 = 1.6;
/// Microseconds per kilometre of fibre.
const MICROS_PER_KM: f64 = 5.0;
const EARTH_KM: f64 = 6371.0;
/// Cities per region.
const CITIES: usize = 24;
/// Nodes are so far from their city at most.
const CITY_KM: f64 = 60.0;

/// A part of the world.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Region {
    /// Its name.
    pub name: String,
    /// Latitude and longitude of its centre, degrees.
    pub at: [f64; 2],
    /// How far its cities are from the centre at most.
    pub radius_km: f64,
    /// Share of the nodes, relative to other regions.
    #[serde(default = "one")]
    pub weight: f64,
}

const fn one() -> f64 {
    1.0
}

impl Region {
    /// The one region of worlds that name none.
    pub fn default_world() -> Vec<Self> {
        vec![Self { name: "europe".into(), at: [48.0, 10.0], radius_km: 1500.0, weight: 1.0 }]
    }
}

/// A point on the unit sphere.
pub(crate) type Point = [f32; 3];

/// The cities of all regions.
#[derive(Debug)]
pub(crate) struct Atlas {
    cities: Vec<Vec<Point>>,
    weights: Vec<f64>,
}

impl Atlas {
    pub(crate) fn new(regions: &[Region], seed: u64) -> Self {
        let mut dice = Dice::new(seed, 0x67656f);
        let cities = regions.iter().map(|region| {
            let centre = point(region.at);
            (0..CITIES).map(|_| scatter(centre, region.radius_km, &mut dice)).collect()
        });
        Self { cities: cities.collect(), weights: regions.iter().map(|r| r.weight).collect() }
    }

    /// Puts a node somewhere: its region and its place.
    pub(crate) fn place(&self, dice: &mut Dice) -> (u8, Point) {
        let mut draw = dice.unit() * self.weights.iter().sum::<f64>();
        let region = self.weights.iter().position(|weight| {
            draw -= weight;
            draw < 0.0
        });
        let region = region.unwrap_or(self.weights.len() - 1);
        let city = self.cities[region][dice.below(CITIES)];
        (region as u8, scatter(city, CITY_KM, dice))
    }
}

/// One-way time between two places without access lines, microseconds.
#[inline]
pub(crate) fn fibre_micros(a: &Point, b: &Point) -> u32 {
    // the chord gives the angle without losing small ones
    let (dx, dy, dz) = (a[0] - b[0], a[1] - b[1], a[2] - b[2]);
    let chord = (dx * dx + dy * dy + dz * dz).sqrt();
    let angle = 2.0 * (chord / 2.0).min(1.0).asin();
    (f64::from(angle) * EARTH_KM * MICROS_PER_KM * PATH_STRETCH) as u32
}

fn point([latitude, longitude]: [f64; 2]) -> Point {
    let (lat, lon) = (latitude.to_radians(), longitude.to_radians());
    [(lat.cos() * lon.cos()) as f32, (lat.cos() * lon.sin()) as f32, lat.sin() as f32]
}

/// A random point within `radius_km` of another.
fn scatter(around: Point, radius_km: f64, dice: &mut Dice) -> Point {
    let reach = radius_km / EARTH_KM;
    loop {
        let d: [f64; 3] = std::array::from_fn(|_| dice.between(-1.0, 1.0));
        if d.iter().map(|x| x * x).sum::<f64>() > 1.0 {
            continue;
        }
        let p: [f64; 3] = std::array::from_fn(|axis| f64::from(around[axis]) + reach * d[axis]);
        let length = p.iter().map(|x| x * x).sum::<f64>().sqrt();
        return std::array::from_fn(|axis| (p[axis] / length) as f32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frankfurt_to_new_york_takes_about_fifty_milliseconds() {
        let micros = fibre_micros(&point([50.1, 8.7]), &point([40.7, -74.0]));
        assert!((45_000..55_000).contains(&micros), "{micros}");
    }

    #[test]
    fn nodes_are_within_their_region() {
        let regions = Region::default_world();
        let atlas = Atlas::new(&regions, 7);
        let mut dice = Dice::new(7, 1);
        for _ in 0..1000 {
            let (region, place) = atlas.place(&mut dice);
            let km = f64::from(fibre_micros(&place, &point(regions[usize::from(region)].at)))
                / MICROS_PER_KM
                / PATH_STRETCH;
            assert!(km < 1700.0, "{km}");
        }
    }
}
