/* Loads the agent file named on the command line, plans three times and acts; prints every action, bit for
 * bit, then the files that are mapped into the process. */
#include <pyjepa/pyjepa.h>
#include <stdio.h>
#include <stdlib.h>

static void check(pyjepa_status status) {
    if (status == PYJEPA_OK) return;
    fprintf(stderr, "status %d: %s\n", (int)status, pyjepa_last_error());
    exit(1);
}

/* An observation that a test can make again: element i is i * factor mod 251, floats are 1/256 of that. */
static void* pattern(const pyjepa_model_dims* dims, size_t factor, size_t* bytes) {
    const size_t count = (size_t)dims->observation_size;
    const int floats = dims->observation_dtype == PYJEPA_FLOAT32;
    void* out = malloc(count * sizeof(float));
    size_t i;
    if (out == NULL) exit(1);
    for (i = 0; i < count; ++i) {
        const size_t value = i * factor % 251;
        if (floats)
            ((float*)out)[i] = (float)value / 256.0f;
        else
            ((unsigned char*)out)[i] = (unsigned char)value;
    }
    *bytes = count * (floats ? sizeof(float) : 1);
    return out;
}

static void print(const char* name, const float* values, size_t count) {
    size_t i;
    printf("%s", name);
    for (i = 0; i < count; ++i) printf(" %a", (double)values[i]);
    printf("\n");
}

int main(int argc, char** argv) {
    pyjepa_model* model = NULL;
    pyjepa_agent* agent = NULL;
    pyjepa_model_dims dims = {0};
    pyjepa_settings settings = {0};
    pyjepa_task task;
    size_t bytes = 0, count;
    void* observation;
    void* goal;
    float* actions;
    FILE* maps;
    int i, c;

    if (argc != 2) return 2;
    printf("version %s\n", pyjepa_version());
    check(pyjepa_model_load(argv[1], &model));
    dims.size = sizeof dims;
    check(pyjepa_model_get_dims(model, &dims));
    check(pyjepa_agent_create(model, 2, &agent));
    pyjepa_model_free(model); /* the agent keeps what it needs */

    pyjepa_task_init(&task, sizeof task);
    goal = pattern(&dims, 37, &bytes);
    task.goal = goal;
    task.goal_bytes = bytes;
    task.seed = 9;
    check(pyjepa_configure(agent, &task));
    free(goal);
    settings.size = sizeof settings;
    check(pyjepa_get_settings(agent, &settings));

    count = (size_t)settings.horizon * (size_t)dims.action_dim;
    actions = malloc(count * sizeof *actions);
    if (actions == NULL) return 1;
    for (i = 0; i < 3; ++i) {
        pyjepa_plan_out out = {0};
        observation = pattern(&dims, 13 + (size_t)i, &bytes);
        check(pyjepa_observe(agent, observation, bytes, -1));
        free(observation);
        out.size = sizeof out;
        out.actions = actions;
        check(pyjepa_plan(agent, 0.0, &out));
        print("plan", actions, count);
    }
    if (dims.has_policy) {
        check(pyjepa_act(agent, actions, (size_t)dims.action_dim));
        print("act", actions, (size_t)dims.action_dim);
    }

    maps = fopen("/proc/self/maps", "r");
    if (maps == NULL) return 1;
    printf("maps\n");
    while ((c = getc(maps)) != EOF) putchar(c);
    fclose(maps);
    free(actions);
    pyjepa_agent_free(agent);
    return 0;
}
