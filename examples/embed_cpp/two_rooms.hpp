// Two Rooms, the world of pyjepa/envs/two_rooms.py: a dot in two rooms joined by one door, seen as pixels.
#ifndef TWO_ROOMS_HPP
#define TWO_ROOMS_HPP

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>

namespace two_rooms {

constexpr int size = 64;                       // height and width of the picture in pixels
constexpr double longest_step = 3.0;           // in pixels
constexpr double wall[2] = {30.5, 32.5};       // its faces; it fills the columns in between
constexpr double door_half_width = 5.0;        // from the door's centre
constexpr double border[2] = {2.0, size - 3};  // the range of both coordinates of the agent
constexpr double dot_sigma = 1.5;
constexpr double goal_radius = 3.0;  // success: at most this far from the goal
constexpr double start_distance = 10.0;
constexpr double wall_clearance = 2.0;
constexpr int max_steps = 200;

struct Position {
    double x, y;
};

inline double distance(Position a, Position b) {
    return std::hypot(a.x - b.x, a.y - b.y);
}

struct Episode {
    Position start, goal;
    int door;  // the row of its centre
    bool cross_room() const { return (start.x < 31.5) != (goal.x < 31.5); }
};

// A held-out door; start and goal in different rooms or in the same one.
template <class Random>
Episode draw(Random& random, bool cross_room) {
    const auto uniform = [&](double low, double high) {
        return std::uniform_real_distribution<double>(low, high)(random);
    };
    const auto position = [&](bool right) {
        const double x = uniform(border[0], wall[0] - wall_clearance);
        return Position{right ? size - 1 - x : x, uniform(border[0], border[1])};
    };
    Episode episode{};
    episode.door = 10 + 4 * std::uniform_int_distribution<int>(0, 11)(random);
    const bool right = std::uniform_int_distribution<int>(0, 1)(random) == 1;
    do {
        episode.start = position(right);
        episode.goal = position(right != cross_room);
    } while (distance(episode.start, episode.goal) < start_distance);
    return episode;
}

// Where one step (in pixels, shortened to the longest) leads. The whole swept segment is checked; the wall
// and the jambs of the door stop the agent, which slides along them.
inline Position move(Position from, double dx, double dy, int door) {
    const double scale = longest_step / std::max(std::hypot(dx, dy), longest_step);
    dx *= scale, dy *= scale;
    const bool left = dx < 0;  // mirrored: the wall is symmetric, so one direction covers both
    double x = left ? size - 1 - from.x : from.x;
    dx = std::abs(dx);
    const double low = door - door_half_width, high = door + door_half_width;

    const bool enters = x <= wall[0] && x + dx > wall[0];
    const double y_entry = enters ? from.y + dy * ((wall[0] - x) / dx) : from.y;
    const bool blocked = enters && (y_entry < low || y_entry > high);
    const bool passes = (enters && !blocked) || (x > wall[0] && x < wall[1]);
    const bool leaves = x < wall[1] && x + dx > wall[1];
    const double leaving = leaves ? (wall[1] - x) / dx : 1.0;
    // Between the faces the jambs bound y; beyond the far face the rest of the step is free.
    const double y =
        passes ? std::clamp(from.y + dy * leaving, low, high) + dy * (1.0 - leaving) : from.y + dy;

    x = blocked ? wall[0] : x + dx;
    return {std::clamp(left ? size - 1 - x : x, border[0], border[1]), std::clamp(y, border[0], border[1])};
}

using Observation = std::array<std::uint8_t, 2 * size * size>;

// Channel 0: a Gaussian dot at the agent. Channel 1: the wall with its door.
inline void render(Position at, int door, Observation& out) {
    const auto bump = [](int pixel, double centre) {
        const float d = static_cast<float>(pixel) - static_cast<float>(centre);
        return std::exp(-(d * d) / static_cast<float>(2 * dot_sigma * dot_sigma));
    };
    std::array<float, size> column;
    for (int c = 0; c < size; ++c) column[static_cast<std::size_t>(c)] = bump(c, at.x);
    std::uint8_t* dot = out.data();
    std::uint8_t* walls = out.data() + size * size;
    for (int r = 0; r < size; ++r) {
        const float row = bump(r, at.y) * 255.0f;
        const bool closed = std::abs(r - door) > door_half_width;
        for (int c = 0; c < size; ++c) {
            *dot++ = static_cast<std::uint8_t>(row * column[static_cast<std::size_t>(c)] + 0.5f);
            *walls++ = closed && c > wall[0] && c < wall[1] ? 255 : 0;
        }
    }
}

}  // namespace two_rooms

#endif
